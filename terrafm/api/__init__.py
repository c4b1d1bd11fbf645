"""What the verbs of the command line do, as functions: `terrafm.ingest(...)`, `terrafm.embed(...)`.

Arguments are named as the verbs' options, and mean what those do; `set` is `--set`, as
{"section.key": value} or as the strings of the command line. Every path may be a URI. Nothing here
ends the process: what was asked for wrongly is a `UsageError`, what failed a `TerraFMError`, each
with one line that says what to do.

The command line calls these functions. Each imports what it needs when it is called: torch and Ray
take seconds to load.
"""

from terrafm.api.datasets import ingest as ingest
from terrafm.api.datasets import inspect as inspect
from terrafm.api.datasets import tile as tile
from terrafm.api.datasets import verify as verify
from terrafm.api.embeddings import embed as embed
from terrafm.api.embeddings import search as search
from terrafm.api.evaluation import evaluate as evaluate
from terrafm.api.evaluation import evaluate_knn as evaluate_knn
from terrafm.api.evaluation import evaluate_retrieval as evaluate_retrieval
from terrafm.api.evaluation import evaluate_table as evaluate_table
from terrafm.api.pages import Page as Page
from terrafm.api.pages import report as report
from terrafm.api.training import Exported as Exported
from terrafm.api.training import export as export
from terrafm.api.training import pretrain as pretrain
from terrafm.terminal import Result as Result

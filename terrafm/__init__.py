"""TerraFM: pretrain an Earth-observation foundation model, from archive to usable weights."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terrafm.api import Exported as Exported
    from terrafm.api import Page as Page
    from terrafm.api import Result as Result
    from terrafm.api import embed as embed
    from terrafm.api import evaluate as evaluate
    from terrafm.api import evaluate_knn as evaluate_knn
    from terrafm.api import evaluate_retrieval as evaluate_retrieval
    from terrafm.api import evaluate_table as evaluate_table
    from terrafm.api import export as export
    from terrafm.api import ingest as ingest
    from terrafm.api import inspect as inspect
    from terrafm.api import pretrain as pretrain
    from terrafm.api import report as report
    from terrafm.api import search as search
    from terrafm.api import tile as tile
    from terrafm.api import verify as verify
    from terrafm.errors import TerraFMError as TerraFMError
    from terrafm.errors import UsageError as UsageError
    from terrafm.modality import Modality as Modality
    from terrafm.models.weights import load_model as load_model

try:
    __version__ = importlib.metadata.version("terrafm")
except importlib.metadata.PackageNotFoundError:
    # A checkout that is run without being installed, as on a machine that only benchmarks.
    __version__ = "0+source"

# torch and timm take seconds to import: a command that needs neither must not wait for them.
_LAZY = {
    "Modality": "terrafm.modality",
    "TerraFMError": "terrafm.errors",
    "UsageError": "terrafm.errors",
    "load_model": "terrafm.models.weights",
    **dict.fromkeys(
        ("Exported", "Page", "Result", "evaluate", "evaluate_knn", "evaluate_retrieval",
         "evaluate_table", "ingest", "inspect", "pretrain", "tile", "verify"),
        "terrafm.api",
    ),
}  # fmt: skip
# Packages that are called: see `terrafm.verb_package`.
_VERB_PACKAGES = ("embed", "export", "report", "search")
__all__ = ["__version__", *_LAZY, *_VERB_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _VERB_PACKAGES:
        return importlib.import_module(f"terrafm.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

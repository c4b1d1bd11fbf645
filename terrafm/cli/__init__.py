"""The command line."""

from terrafm.cli.verbs import app as app
from terrafm.cli.verbs import main as main

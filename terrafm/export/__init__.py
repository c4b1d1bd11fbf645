"""Export: a checkpoint's encoder in the formats that other tools open, and the lines that load it.

`writing` is the way in; `graphs` and the modules named after folders write what is more than a
file of weights.
"""

import importlib
from typing import TYPE_CHECKING, Any

from terrafm.export.request import ExportFormat, ExportOptions, Network
from terrafm.verb_package import make_callable

if TYPE_CHECKING:
    from terrafm.export.snippets import loading_snippet as loading_snippet
    from terrafm.export.writing import export_checkpoint as export_checkpoint
    from terrafm.export.writing import export_weights as export_weights

__all__ = [
    "ExportFormat",
    "ExportOptions",
    "Network",
    "export_checkpoint",
    "export_weights",
    "loading_snippet",
]

# The command line asks for the formats' names only, and must not wait for torch.
_LAZY = {
    "export_checkpoint": "terrafm.export.writing",
    "export_weights": "terrafm.export.writing",
    "loading_snippet": "terrafm.export.snippets",
}


make_callable(__name__)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

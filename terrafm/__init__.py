"""TerraFM: pretrain an Earth-observation foundation model, from archive to usable weights."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terrafm.modality import Modality as Modality
    from terrafm.models.weights import load_model as load_model

try:
    __version__ = importlib.metadata.version("terrafm")
except importlib.metadata.PackageNotFoundError:
    # A checkout that is run without being installed, as on a machine that only benchmarks.
    __version__ = "0+source"
__all__ = ["Modality", "__version__", "load_model"]

# torch and timm take seconds to import: a command that needs neither must not wait for them.
_LAZY = {"Modality": "terrafm.modality", "load_model": "terrafm.models.weights"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

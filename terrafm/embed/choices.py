"""How embeddings may be written; light, for the command line."""

from enum import StrEnum
from importlib.util import find_spec

from terrafm.errors import UsageError


class DenseFormat(StrEnum):
    """How patch embeddings are written."""

    GEOTIFF = "geotiff"
    ZARR = "zarr"


class Quantise(StrEnum):
    """How embeddings are stored in less than float32."""

    INT8 = "int8"


def check_zarr() -> None:
    """Whether Zarr can be written.

    Raises:
        UsageError: the library is not installed.
    """
    if find_spec("zarr") is None:
        raise UsageError("--dense-format zarr needs zarr: pip install 'terrafm[zarr]'")

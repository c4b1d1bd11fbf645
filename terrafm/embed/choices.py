"""How embeddings may be written; light, for the command line."""

from enum import StrEnum


class DenseFormat(StrEnum):
    """How patch embeddings are written."""

    GEOTIFF = "geotiff"
    ZARR = "zarr"


class Quantise(StrEnum):
    """How embeddings are stored in less than float32."""

    INT8 = "int8"

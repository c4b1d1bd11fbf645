"""Pixels of one cell to bytes and back: blosc2 with bitshuffle and LZ4, and a CRC-32.

Chosen on real Sentinel pixels (lossless): bitshuffle + LZ4 decodes at more than 2 GB/s on one
core, an order of magnitude faster than the GeoTIFF codecs at a smaller size.
"""

import zlib
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

CODEC = "blosc2:bitshuffle+lz4"

# Every parameter that shapes the bytes is fixed: the same pixels give the same cell anywhere.
_COMPRESSION = blosc2.CParams(
    codec=blosc2.Codec.LZ4,
    clevel=9,
    typesize=2,
    filters=[blosc2.Filter.BITSHUFFLE],
    blocksize=65536,
    splitmode=blosc2.SplitMode.NEVER_SPLIT,
    nthreads=1,
)
_DECOMPRESSION = blosc2.DParams(nthreads=1)


def encode(pixels: NDArray[Any]) -> bytes:
    """Compresses (bands, h, w) 16-bit storage integers into one cell."""
    cell: bytes = blosc2.compress2(np.ascontiguousarray(pixels), cparams=_COMPRESSION)
    return cell


def decode(cell: bytes | memoryview, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Restores the pixels of a cell.

    Raises:
        ValueError: the bytes are not a cell of this shape and type.
    """
    pixels = np.empty(shape, dtype)
    try:
        size, _, _ = blosc2.get_cbuffer_sizes(cell)
        if size != pixels.nbytes:
            raise ValueError(f"cell holds {size} bytes of pixels, not {pixels.nbytes}")
        blosc2.decompress2(cell, dst=pixels, dparams=_DECOMPRESSION)
    except RuntimeError as error:
        raise ValueError(f"cell does not decode: {error}") from None
    return pixels


def checksum(cell: bytes | memoryview) -> int:
    """CRC-32 of a cell's bytes."""
    return zlib.crc32(cell)

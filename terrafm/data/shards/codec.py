"""Pixels of one cell to bytes and back, by the codec that the cell's column names; a CRC-32.

A cell may be a stranger's. Codecs read many forms of which `encode` writes few, and some of them
run code: a Blosc2 chunk names its codec and filters by number, and for those that are plugins the
library starts Python and imports a module of that name, from the working directory first. So the
head of a cell is compared with what `encode` writes before a library sees it.

Measured on real Sentinel-2 pixels, lossless: blosc2 with bitshuffle and LZ4 decodes at about
2 GB/s on one core, an order of magnitude faster than the GeoTIFF codecs at a smaller size.
pcodec needs a fifth to a quarter fewer bytes and decodes at 0.5 to 0.9 GB/s: for shards that are
read over a network which is slower than that.
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from terrafm.errors import UsageError
from terrafm.storage.claims import check_claim
from terrafm.storage.records import shortened

DEFAULT_CODEC = "blosc2:bitshuffle+lz4"
CODECS = {"blosc2": DEFAULT_CODEC, "pcodec": "pcodec:level8"}
"""`ingest.codec` -> the full name that shards and manifest carry."""

Pixels = NDArray[Any]
Bytes = bytes | memoryview

# Every parameter that shapes the bytes is fixed: the same pixels give the same cell anywhere.
_BLOCK_BYTES = 65536
# C-Blosc2's chunk header: versions of the format and of LZ4, flags, bytes of a value; sizes of
# the pixels, of a block, of the chunk; then filters, codecs and more flags
# (README_CHUNK_FORMAT.rst of C-Blosc2; blosc2 3.6, 4.0 and 4.14 write these bytes alike).
_BLOSC2_HEAD = struct.Struct("<4s3i16s")
_FILTERS = bytes([2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
_COMPRESSED, _STORED, _SMALL = (bytes([5, 1, flags, 2]) for flags in (0x35, 0x37, 0x07))
_NOT_SPECIAL, _ALL_ZERO = b"\x00", b"\x10"
# What pcodec's standalone format begins with: its mark, its version, no type for the whole file.
_PCODEC_HEAD = b"pco!\x03\x00"
_PCODEC = ChunkConfig(
    compression_level=8,
    mode_spec=ModeSpec.auto(),
    delta_spec=DeltaSpec.auto(),
    paging_spec=PagingSpec.equal_pages_up_to(1 << 18),
)


@dataclass(frozen=True)
class _Codec:
    encode: Callable[[Pixels], bytes]
    decode_into: Callable[[Bytes, Pixels], None]


def encode(pixels: Pixels, codec: str = DEFAULT_CODEC) -> bytes:
    """Compresses (bands, h, w) 16-bit storage integers into one cell.

    Args:
        pixels: int16 or uint16.
        codec: a value of `CODECS`.

    Raises:
        UsageError: there is no such codec.
    """
    return _find(codec).encode(np.ascontiguousarray(pixels))


def decode(cell: Bytes, shape: tuple[int, ...], dtype: str, codec: str = DEFAULT_CODEC) -> Pixels:
    """Restores the pixels of a cell.

    Raises:
        ValueError: the bytes are not a cell of this shape, type and codec, or cannot hold so many
            pixels, or memory cannot.
        UsageError: there is no such codec.
    """
    try:
        # The shape is the manifest's word: 32 bytes of zeros are a gigabyte if it says so.
        check_claim(math.prod(shape) * np.dtype(dtype).itemsize, memoryview(cell).nbytes)
        pixels = np.empty(shape, dtype)
        _find(codec).decode_into(cell, pixels)
    except MemoryError:
        raise ValueError("cell does not decode: its pixels do not fit into memory") from None
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"cell does not decode: {error}") from None
    return pixels


def checksum(cell: Bytes) -> int:
    """CRC-32 of a cell's bytes."""
    return zlib.crc32(cell)


def check_codec(codec: str, where: str) -> None:
    """Makes sure that cells of a column can be read.

    Raises:
        UsageError: this version has no such codec.
    """
    if codec not in _CODECS:
        raise UsageError(
            f"{where} names codec {shortened(codec)}, this TerraFM reads {', '.join(_CODECS)}: "
            "upgrade TerraFM"
        )


def _find(codec: str) -> _Codec:
    check_codec(codec, "the cell group")
    return _CODECS[codec]


# Only what holds cells loads the library: the rest of the package is open in half the time.


@cache
def _blosc2_encoder() -> Callable[[Pixels], bytes]:
    import blosc2

    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4,
        clevel=9,
        typesize=2,
        filters=[blosc2.Filter.BITSHUFFLE],
        blocksize=_BLOCK_BYTES,
        splitmode=blosc2.SplitMode.NEVER_SPLIT,
        nthreads=1,
    )
    return partial(blosc2.compress2, cparams=parameters)


@cache
def _blosc2_decoder() -> Callable[..., None]:
    import blosc2

    return partial(blosc2.decompress2, dparams=blosc2.DParams(nthreads=1))


def _blosc2_encode(pixels: Pixels) -> bytes:
    return _blosc2_encoder()(pixels)


def _blosc2_decode(cell: Bytes, pixels: Pixels) -> None:
    _check_blosc2(cell, pixels)
    _blosc2_decoder()(cell, dst=pixels)


def _check_blosc2(cell: Bytes, pixels: Pixels) -> None:
    """Lets through the three forms that `_blosc2_encode` gives: compressed, stored, all zero."""
    if len(cell) < _BLOSC2_HEAD.size:
        raise ValueError("it is cut short")
    kind, size, block, length, rest = _BLOSC2_HEAD.unpack_from(cell)
    whole = _BLOSC2_HEAD.size + pixels.nbytes
    lengths = {
        (_COMPRESSED, _NOT_SPECIAL): len(cell),
        (_COMPRESSED, _ALL_ZERO): _BLOSC2_HEAD.size,
        (_STORED, _NOT_SPECIAL): whole,
        (_SMALL, _NOT_SPECIAL): whole,
    }
    form = kind, rest[-1:]
    if rest[:-1] != _FILTERS or form not in lengths or block != min(size, _BLOCK_BYTES):
        raise ValueError("it is a Blosc2 chunk of another kind than TerraFM writes")
    _check_size(size, pixels)
    if not length == len(cell) == lengths[form]:
        raise ValueError("it is cut short, or too long")


def _pcodec_encode(pixels: Pixels) -> bytes:
    cell: bytes = standalone.simple_compress(pixels.reshape(-1), _PCODEC)
    return cell


def _pcodec_decode(cell: Bytes, pixels: Pixels) -> None:
    if bytes(cell[: len(_PCODEC_HEAD)]) != _PCODEC_HEAD:
        raise ValueError("it is a pcodec stream of another kind than TerraFM writes")
    progress = standalone.simple_decompress_into(bytes(cell), pixels.reshape(-1))
    size = progress.n_processed * pixels.itemsize
    # What does not fit is left out without a word, but then the stream is not finished.
    _check_size(size if progress.finished else size + pixels.itemsize, pixels)


def _check_size(size: int, pixels: Pixels) -> None:
    if size != pixels.nbytes:
        raise ValueError(f"it does not hold the {pixels.nbytes} bytes of its pixels")


_CODECS = {
    CODECS["blosc2"]: _Codec(_blosc2_encode, _blosc2_decode),
    CODECS["pcodec"]: _Codec(_pcodec_encode, _pcodec_decode),
}

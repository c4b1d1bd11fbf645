"""What the metadata of a Zarr array (format 2) say, and its chunks: a stranger's, with bounds.

Types are numbers, times and texts of fixed length; chunks are plain, deflated, Zstandard or Blosc
1, whose head is compared with what it should say before a library sees it: a Blosc2 chunk can name
codecs for which the library starts Python. Objects, and filters, are not read: numcodecs unpickles
for some of them. https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from terrafm.storage.limits import ZARR_CHUNKS, ZARR_DIMENSIONS
from terrafm.storage.records import shortened

# Numbers, times in any unit, texts of up to 256 letters; no objects, no records.
_KINDS = "biufM"
_LONGEST_TEXT = 256
_DEFLATED = {"zlib": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}
# The head of a Blosc 1 chunk: versions of the format and of the codec, flags, bytes of a value;
# sizes of the pixels, of a block and of the chunk (README_CHUNK_FORMAT.rst of C-Blosc).
_BLOSC_HEAD = struct.Struct("<4B3I")
_BLOSC_FORMAT = 2
# Both shuffles at once mark the longer head of Blosc2; bit 3 is its delta filter.
_BLOSC2, _DELTA = 0b101, 0b1000
# BloscLZ, LZ4, zlib, Zstandard; 2 was Snappy.
_BLOSC_CODECS = (0, 1, 3, 4)


class BadZarrError(Exception):
    """A group or array that cannot be read; the text says why, without naming the file."""


@dataclass(frozen=True)
class ArrayInfo:
    """What the metadata of an array say.

    Attributes:
        shape: of the whole.
        chunks: shape of a chunk.
        dtype: of its values.
        compressor: settings of the codec, or None.
        fill: value of chunks that are not there.
        separator: between the numbers of a chunk.
        attributes: of the user.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    compressor: dict[str, Any] | None
    fill: Any
    separator: str
    attributes: dict[str, Any]


def array_info(metadata: dict[str, Any], attributes: dict[str, Any]) -> ArrayInfo:
    """Of what `.zarray` and `.zattrs` hold.

    Raises:
        BadZarrError: it is one of those not read.
    """
    try:
        return _info(metadata, attributes)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise BadZarrError(str(error)) from None


def decode_chunk(packed: bytes, info: ArrayInfo) -> bytes:
    """The bytes of a chunk.

    Raises:
        BadZarrError: it is damaged, or of a codec not read.
    """
    size = math.prod(info.chunks) * info.dtype.itemsize
    try:
        content = _decode(packed, info.compressor, size)
    except (ValueError, RuntimeError, OSError, zlib.error) as error:
        raise BadZarrError(str(error)) from None
    if len(content) != size:
        raise BadZarrError(f"it has {len(content):,} bytes, not {size:,}")
    return content


def _info(metadata: dict[str, Any], attributes: dict[str, Any]) -> ArrayInfo:
    if not metadata or metadata.get("zarr_format") != 2:
        raise ValueError("its metadata are not of format 2")
    shape = tuple(int(side) for side in metadata["shape"])
    chunks = tuple(int(side) for side in metadata["chunks"])
    if len(shape) > ZARR_DIMENSIONS:
        raise ValueError(
            f"it has {len(shape)} dimensions, more than the {ZARR_DIMENSIONS} that are read"
        )
    if len(chunks) != len(shape) or any(s < 0 for s in shape) or any(c < 1 for c in chunks):
        raise ValueError(f"shape {shape} and chunks {chunks} do not fit")
    number = math.prod(-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True))
    if number > ZARR_CHUNKS:
        raise ValueError(f"it has {number:,} chunks, more than the {ZARR_CHUNKS:,} that are read")
    text = metadata["dtype"]
    if not isinstance(text, str):
        raise ValueError("its values are records, which are not read")
    dtype = np.dtype(text)
    is_text = dtype.kind in "US" and dtype.itemsize <= 4 * _LONGEST_TEXT
    if dtype.kind not in _KINDS and not is_text:
        raise ValueError(f"values of the type {shortened(text)} are not read")
    if metadata.get("filters"):
        raise ValueError("it has filters, which are not read")
    if metadata.get("order", "C") != "C":
        raise ValueError("its values lie in columns, and rows are read")
    compressor = metadata.get("compressor")
    if compressor is not None and not isinstance(compressor, dict):
        raise ValueError("its compressor is no description of one")
    fill = metadata.get("fill_value")
    empty: Any = "" if is_text else np.zeros((), dtype)
    filling = np.asarray(empty if fill is None else fill, dtype)
    if filling.ndim:
        raise ValueError("its fill value is not one value")
    separator = "/" if metadata.get("dimension_separator") == "/" else "."
    return ArrayInfo(
        shape, chunks, dtype, compressor, filling, separator, attributes,
    )  # fmt: skip


def _decode(packed: bytes, compressor: dict[str, Any] | None, size: int) -> bytes:
    """The bytes of a chunk, never more than it should have.

    Raises:
        ValueError, RuntimeError, OSError, zlib.error: it is damaged, or of a codec not read.
    """
    if compressor is None:
        return packed
    name = compressor.get("id")
    if name in _DEFLATED:
        return zlib.decompressobj(_DEFLATED[str(name)]).decompress(packed, size + 1)
    if name == "zstd":
        import pyarrow as pa

        return bytes(pa.decompress(packed, decompressed_size=size, codec="zstd", asbytes=True))
    if name == "blosc":
        return _decode_blosc(packed, size)
    raise ValueError(f"chunks of the codec {shortened(str(name))} are not read")


def _decode_blosc(packed: bytes, size: int) -> bytes:
    import blosc2

    if len(packed) < _BLOSC_HEAD.size:
        raise ValueError("it is cut short")
    version, _, flags, _, decoded, _, stored = _BLOSC_HEAD.unpack_from(packed)
    plain = flags & _BLOSC2 != _BLOSC2 and not flags & _DELTA
    if version != _BLOSC_FORMAT or not plain or flags >> 5 not in _BLOSC_CODECS:
        raise ValueError("it is no chunk of Blosc 1")
    if decoded != size or stored != len(packed):
        raise ValueError(f"it claims {decoded:,} bytes in {stored:,}, not {size:,} in "
                         f"{len(packed):,}")  # fmt: skip
    content = bytearray(size)
    if size:
        blosc2.decompress(packed, dst=content)
    return bytes(content)

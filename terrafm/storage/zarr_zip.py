"""Arrays of a Zarr group (format 2) in a zip: what a stranger packed, read with bounds.

What the metadata claim (shape, chunks, type) is held against the bytes of the zip before memory is
taken; types are numbers, times and texts of fixed length; chunks are plain, deflated, Zstandard or
Blosc 1, whose head is compared with what it should say before a library sees it: a Blosc2 chunk
can name codecs for which the library starts Python. Objects, and filters, are not read: numcodecs
unpickles for some of them. https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

import math
import struct
import zlib
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.storage.claims import check_claim
from terrafm.storage.limits import (
    HARMLESS_BYTES,
    WHOLE_FILE_BYTES,
    ZARR_CHUNKS,
    ZARR_DIMENSIONS,
)
from terrafm.storage.records import parse_json, shortened
from terrafm.storage.zip_members import Member, list_members_of, read_member_of

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


class ZarrZip:
    """A group in a zip.

    Args:
        file: the zip, open to read and seek.

    Raises:
        BadZipError, BadZarrError: it is no zip, or no group of Zarr lies in it.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._members = {member.name: member for member in list_members_of(file)}
        if "zarr.json" in self._members:
            raise BadZarrError("it is Zarr of format 3, and format 2 is read")
        if not any(name.endswith(".zarray") for name in self._members):
            raise BadZarrError("no array of Zarr (format 2) lies in it")
        self._infos: dict[str, ArrayInfo] = {}
        self._kept: tuple[str, NDArray[Any]] | None = None

    def close(self) -> None:
        """Lets go of the zip."""
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}/.zarray" in self._members

    def info(self, name: str) -> ArrayInfo:
        """What an array's metadata say.

        Raises:
            BadZipError, BadZarrError: there is no such array, or it is one of those not read.
        """
        if name not in self._infos:
            if name not in self:
                raise BadZarrError(f"it has no array {name}")
            try:
                self._infos[name] = _info(self._json(f"{name}/.zarray"),
                                          self._json(f"{name}/.zattrs"))  # fmt: skip
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                raise BadZarrError(f"array {name}: {error}") from None
        return self._infos[name]

    def read(self, name: str, *first: int) -> NDArray[Any]:
        """An array, or the part of it at some numbers of its first dimensions.

        Raises:
            BadZipError, BadZarrError: it is damaged, or larger than its bytes can hold.
        """
        info = self.info(name)
        if len(first) > len(info.shape) or any(
            not 0 <= one < side for one, side in zip(first, info.shape, strict=False)
        ):
            raise BadZarrError(f"array {name} has the shape {info.shape}, and no {first}")
        spans = [(one, one + 1) for one in first]
        spans += [(0, side) for side in info.shape[len(first) :]]
        touched = [
            range(start // chunk, -(-stop // chunk) if stop > start else start // chunk)
            for (start, stop), chunk in zip(spans, info.chunks, strict=True)
        ]
        self._check(name, info, spans, touched)
        found = np.full([stop - start for start, stop in spans], info.fill, info.dtype)
        for numbers in product(*touched):
            part = self._chunk(name, info, numbers)
            if part is None:
                continue
            target, source = [], []
            for number, chunk, (start, stop) in zip(numbers, info.chunks, spans, strict=True):
                low, high = max(start, number * chunk), min(stop, (number + 1) * chunk)
                target.append(slice(low - start, high - start))
                source.append(slice(low - number * chunk, high - number * chunk))
            found[tuple(target)] = part[tuple(source)]
        return found.reshape(found.shape[len(first) :])

    def _json(self, path: str) -> dict[str, Any]:
        member = self._members.get(path)
        if member is None:
            return {}
        content = parse_json(read_member_of(self._file, member))
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no JSON object")
        return content

    def _key(self, name: str, info: ArrayInfo, numbers: tuple[int, ...]) -> str:
        return f"{name}/{info.separator.join(map(str, numbers)) or '0'}"

    def _check(
        self, name: str, info: ArrayInfo, spans: list[tuple[int, int]], touched: list[range]
    ) -> None:
        """Refuses a part before memory is taken for it, by what its chunks can hold."""
        members = [self._members.get(self._key(name, info, n)) for n in product(*touched)]
        stored = sum(member.packed for member in members if member is not None)
        each = math.prod(info.chunks) * info.dtype.itemsize
        whole = math.prod(stop - start for start, stop in spans) * info.dtype.itemsize
        try:
            check_claim(max(each, whole), stored, "values")
        except ValueError as error:
            raise BadZarrError(f"array {name}: {error}") from None

    def _chunk(self, name: str, info: ArrayInfo, numbers: tuple[int, ...]) -> NDArray[Any] | None:
        key = self._key(name, info, numbers)
        # A chunk of many samples serves the next one as well.
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        member = self._members.get(key)
        if member is None:
            return None
        values = np.frombuffer(self._decoded(name, info, member), info.dtype).reshape(info.chunks)
        self._kept = key, values
        return values

    def _decoded(self, name: str, info: ArrayInfo, member: Member) -> bytes:
        size = math.prod(info.chunks) * info.dtype.itemsize
        packed = read_member_of(self._file, member, min(max(2 * size, HARMLESS_BYTES),
                                                        WHOLE_FILE_BYTES))  # fmt: skip
        try:
            content = _decode(packed, info.compressor, size)
        except (ValueError, RuntimeError, OSError, zlib.error) as error:
            raise BadZarrError(f"array {name}, chunk {member.name[-40:]}: {error}") from None
        if len(content) != size:
            raise BadZarrError(
                f"array {name}, chunk {member.name[-40:]} has {len(content):,} bytes, not {size:,}"
            )
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

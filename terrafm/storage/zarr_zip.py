"""Arrays of a Zarr group (format 2) in a zip: what a stranger packed, read with bounds.

What the metadata claim (shape, chunks, type) is held against the bytes of the zip before memory is
taken; see `terrafm.storage.zarr_arrays` for what is read.
"""

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.storage.claims import check_claim
from terrafm.storage.limits import HARMLESS_BYTES, WHOLE_FILE_BYTES
from terrafm.storage.records import parse_json
from terrafm.storage.zarr_arrays import ArrayInfo, BadZarrError, array_info, decode_chunk
from terrafm.storage.zip_members import Member, list_members_of, read_member_of


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
                self._infos[name] = array_info(self._json(f"{name}/.zarray"),
                                               self._json(f"{name}/.zattrs"))  # fmt: skip
            except (ValueError, BadZarrError) as error:
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
            return decode_chunk(packed, info)
        except BadZarrError as error:
            raise BadZarrError(f"array {name}, chunk {member.name[-40:]}: {error}") from None

"""A hierarchy of Zarr arrays (format 2) at any URI: a folder, or a zip of one, chunk by chunk.

Nothing is listed: all metadata stand in `.zmetadata` where the writer put them together, else each
array's own are read. A chunk that is not there is the array's fill value.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.storage.claims import check_claim
from terrafm.storage.files import join, read_bytes
from terrafm.storage.limits import DOCUMENT_BYTES, HARMLESS_BYTES, WHOLE_FILE_BYTES
from terrafm.storage.records import parse_json
from terrafm.storage.zarr_arrays import ArrayInfo, BadZarrError, array_info, decode_chunk
from terrafm.storage.zip_members import Member, list_members, read_member

_ALL = ".zmetadata"


class ZarrStore:
    """Arrays by their paths; safe in threads.

    Args:
        uri: the folder, or a zip that holds it or its content.

    Raises:
        BadZipError, BadZarrError: it is no zip, or no Zarr of format 2.
        OSError, StoreRefusedError, StoreFailedError: it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._members = _members(uri) if uri.lower().endswith(".zip") else None
        content = self._json(_ALL)
        self._metadata = content.get("metadata") if content is not None else None
        if self._metadata is not None and not isinstance(self._metadata, dict):
            raise BadZarrError(f"{_ALL} is not as Zarr has it")
        if content is None and self._json(".zgroup") is None:
            if self._json("zarr.json") is not None:
                raise BadZarrError("it is Zarr of format 3, and format 2 is read")
            raise BadZarrError(f"neither {_ALL} nor .zgroup is in it: a partial download?")
        self._infos: dict[str, ArrayInfo | None] = {}

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Of the hierarchy itself.

        Raises:
            BadZarrError: they are no JSON object.
        """
        return self._metadata_of(".zattrs") or {}

    def info(self, name: str) -> ArrayInfo | None:
        """What an array's metadata say; None where there is no such array.

        Raises:
            BadZipError, BadZarrError: it is damaged, or one of those not read.
        """
        if name not in self._infos:
            metadata = self._metadata_of(f"{name}/.zarray")
            found = None
            if metadata is not None:
                try:
                    found = array_info(metadata, self._metadata_of(f"{name}/.zattrs") or {})
                except BadZarrError as error:
                    raise BadZarrError(f"array {name}: {error}") from None
            self._infos[name] = found
        return self._infos[name]

    def read(self, name: str) -> NDArray[Any]:
        """A short array of one dimension, such as coordinates.

        Raises:
            BadZipError, BadZarrError: there is none, or it is damaged.
        """
        info = self.info(name)
        if info is None or len(info.shape) != 1:
            raise BadZarrError(f"it has no array {name} of one dimension")
        length, chunk = info.shape[0], info.chunks[0]
        if length * info.dtype.itemsize > DOCUMENT_BYTES:
            raise BadZarrError(f"array {name} has {length:,} values")
        found = np.full(length, info.fill, info.dtype)
        for number in range(-(-length // chunk)):
            part = self.chunk(name, info, (number,))
            if part is not None:
                found[number * chunk : (number + 1) * chunk] = part[: length - number * chunk]
        return found

    def chunk(self, name: str, info: ArrayInfo, numbers: tuple[int, ...]) -> NDArray[Any] | None:
        """A chunk; None where it is not there.

        Raises:
            BadZipError, BadZarrError: it is damaged, or claims more than its bytes can hold.
            OSError, StoreRefusedError, StoreFailedError: it cannot be read.
        """
        key = f"{name}/{info.separator.join(map(str, numbers))}"
        size = math.prod(info.chunks) * info.dtype.itemsize
        packed = self._bytes(key, min(max(2 * size, HARMLESS_BYTES), WHOLE_FILE_BYTES))
        if packed is None:
            return None
        try:
            check_claim(size, len(packed), "values")
            content = decode_chunk(packed, info)
        except (ValueError, BadZarrError) as error:
            raise BadZarrError(f"chunk {key}: {error}") from None
        return np.frombuffer(content, info.dtype).reshape(info.chunks)

    def _metadata_of(self, path: str) -> dict[str, Any] | None:
        if self._metadata is None:
            return self._json(path)
        found = self._metadata.get(path)
        if found is not None and not isinstance(found, dict):
            raise BadZarrError(f"{path} is no JSON object")
        return found

    def _json(self, path: str) -> dict[str, Any] | None:
        text = self._bytes(path, DOCUMENT_BYTES)
        if text is None:
            return None
        try:
            content = parse_json(text)
        except ValueError as error:
            raise BadZarrError(f"{path}: {error}") from None
        if not isinstance(content, dict):
            raise BadZarrError(f"{path} is no JSON object")
        return content

    def _bytes(self, path: str, most: int) -> bytes | None:
        if self._members is not None:
            member = self._members.get(path)
            return None if member is None else read_member(self.uri, member, most)
        try:
            return read_bytes(join(self.uri, path), most)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _members(uri: str) -> dict[str, Member]:
    """By path below the folder of the hierarchy, which may be the only one in the zip."""
    found = {member.name: member for member in list_members(uri)}
    roots = [name.rpartition("/")[0] for name in found
             if name.rpartition("/")[2] in (_ALL, ".zgroup", "zarr.json")]  # fmt: skip
    root = min(roots, key=len, default="")
    prefix = f"{root}/" if root else ""
    return {name.removeprefix(prefix): m for name, m in found.items() if name.startswith(prefix)}

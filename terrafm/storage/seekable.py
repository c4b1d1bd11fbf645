"""Files to read and seek in, wherever they lie."""

import io
import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import IO, Any, cast

from typing_extensions import override

from terrafm.storage.files import ask, is_local, read_range_of, resolve
from terrafm.storage.local import open_regular

Range = tuple[int, int]
"""Bytes [start, stop) of a file."""


def joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Ranges in order, those with at most `gap` bytes between them as one."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


class Seekable(io.RawIOBase):
    """A file of known size whose place moves without a request."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    @override
    def read(self, size: int | None = -1) -> bytes:
        start = min(self._position, self._size)
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if start == stop:
            return b""
        content = self._bytes(start, stop)
        self._position = start + len(content)
        return content

    @override
    def readall(self) -> bytes:
        return self.read(-1)

    @override
    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    @abstractmethod
    def _bytes(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), a range that is not empty and lies in the file."""


class StoreFile(Seekable):
    """A file of a store for libraries that seek: every read is one patient range request.

    Args:
        filesystem: of fsspec.
        path: inside it.
        where: URI, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """

    def __init__(self, filesystem: Any, path: str, where: str) -> None:
        super().__init__(int(ask("read", where, filesystem, lambda: filesystem.size(path))))
        self._filesystem, self._path, self._where = filesystem, path, where

    @override
    def _bytes(self, start: int, stop: int) -> bytes:
        return read_range_of(self._filesystem, self._path, self._where, start, stop)


def open_file(uri: str | os.PathLike[str]) -> IO[bytes]:
    """A file to read and seek in, patient where it lies in a store.

    Raises:
        UnreadableFileError: it is no regular file.
        OSError: there is none, or it cannot be opened.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        return open_regular(path)
    return cast(IO[bytes], StoreFile(filesystem, path, os.fspath(uri)))

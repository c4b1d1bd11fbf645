"""A file of a store in few requests: its first bytes at once, other ranges before their time.

Libraries that read rasters ask for a header in many small steps, and for one block after the
other. In a store each of these waits for an answer.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from typing_extensions import override

from terrafm.storage.files import ask, read_range_of, resolve
from terrafm.storage.seekable import Range, Seekable, joined

# The header of a COG of 11,000 x 11,000 pixels with its overviews takes about 12 kB.
_HEAD = 16 << 10
# What is asked for outside of all that was fetched is read in steps of this.
_STEP = 4 << 10
# Ranges with at most so much between them are one request.
_GAP = 4 << 10
_THREADS = 16


class ReadAhead:
    """The bytes of a file of a store.

    Attributes:
        size: bytes.
    """

    def __init__(self, uri: str) -> None:
        """Reads the first bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StoreRefusedError, StoreFailedError: the store does not answer.
        """
        self._filesystem, self._path = resolve(uri)
        self._where = uri
        size = ask("read", uri, self._filesystem, lambda: self._filesystem.size(self._path))
        self.size = int(size)
        self._head = self._ask(0, _HEAD)
        self._step: tuple[int, bytes] = (0, b"")
        self._ahead: list[tuple[int, bytes]] = []

    def open(self) -> "_View":
        """A file to read and seek in; several may be open."""
        return _View(self)

    def fetch(self, start: int, stop: int) -> None:
        """Reads a range and keeps it until `forget`; safe in threads."""
        # What is here already does not travel twice: a small file may lie in it altogether.
        here = self._head[start:stop]
        if start + len(here) < stop:
            self._ahead.append((start, here + self._ask(start + len(here), stop)))

    def forget(self) -> None:
        """Drops what was fetched ahead."""
        self._ahead.clear()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end of the file."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        for first, content in ((0, self._head), self._step, *self._ahead):
            if first <= start and stop <= first + len(content):
                return content[start - first : stop - first]
        if stop - start >= _STEP:
            return self._ask(start, stop)
        self._step = start, self._ask(start, start + _STEP)
        return self._step[1][: stop - start]

    def _ask(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        return bytes(read_range_of(self._filesystem, self._path, self._where, start, stop))


def fetch_all(wanted: Iterable[tuple[ReadAhead, Iterable[Range]]]) -> None:
    """Fetches ranges of several files at once; those that lie beside each other in one request.

    Raises:
        FileNotFoundError, StoreRefusedError, StoreFailedError: one cannot be read.
    """
    jobs = [(file, *part) for file, ranges in wanted for part in joined(ranges, _GAP)]
    if not jobs:
        return
    with ThreadPoolExecutor(min(_THREADS, len(jobs))) as pool:
        for _ in pool.map(lambda job: job[0].fetch(job[1], job[2]), jobs):
            pass


class _View(Seekable):
    def __init__(self, whole: ReadAhead) -> None:
        super().__init__(whole.size)
        self._whole = whole

    @override
    def _bytes(self, start: int, stop: int) -> bytes:
        return self._whole.read(start, stop)

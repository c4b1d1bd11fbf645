"""Cells of a remote dataset kept on this node's disk, for all its processes together.

One file per cell, named by where it lies and what it holds, so that no change of a dataset can
be answered with old pixels. Every read is checked against the cell's checksum. The least recently
used cells go when the limit is reached; a disk that fails costs speed, never the run.
"""

import fcntl
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from terrafm.data.shards.codec import checksum

logger = logging.getLogger(__name__)

# Making room frees some more than is asked for, so that it is rare.
_KEPT_SHARE = 0.9
_COUNTER_BYTES = 8


class CellKey(NamedTuple):
    """What identifies a cell's bytes."""

    shard: str
    offset: int
    length: int
    checksum: int


class CellCache:
    """A folder of cells with a limit in bytes; safe in several threads and processes.

    Args:
        folder: local; made where it is missing.
        limit: bytes of all cells in it.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.enabled = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._counter = os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            self._turn_off(error)

    def get(self, key: CellKey) -> bytes | None:
        """A cell's bytes, or None where they are not kept; a damaged file is dropped."""
        if not self.enabled:
            return None
        path = self._path(key)
        try:
            cell = path.read_bytes()
        except OSError:
            # Missing, or removed by another process just now.
            return None
        if len(cell) == key.length and checksum(cell) == key.checksum:
            # The order of eviction; file systems do not keep access times for every read.
            _attempt_touch(path)
            return cell
        logger.warning("%s in the cache is damaged: dropped, and read from the store", path)
        try:
            with self._locked():
                path.unlink(missing_ok=True)
                self._count(-len(cell))
        except OSError as error:
            self._turn_off(error)
        return None

    def put(self, key: CellKey, cell: bytes | memoryview) -> None:
        """Keeps a cell; it must have been checked."""
        if not self.enabled or len(cell) > self.limit * (1 - _KEPT_SHARE):
            return
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            # Written under the lock: what is not yet there could not be counted.
            with self._locked():
                if path.exists():
                    return
                self._count(len(cell))
                path.parent.mkdir(exist_ok=True)
                try:
                    temporary.write_bytes(cell)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            self._turn_off(error)

    def _path(self, key: CellKey) -> Path:
        name = hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:40]
        return self.folder / name[:2] / name[2:]

    def _count(self, change: int) -> None:
        """Counts bytes before they come, so that a killed process leaves too high a count."""
        known = os.pread(self._counter, _COUNTER_BYTES, 0)
        total = int.from_bytes(known, "little") + change
        if total > self.limit:
            total = self._make_room(int(self.limit * _KEPT_SHARE) - change) + change
        os.pwrite(self._counter, max(0, total).to_bytes(_COUNTER_BYTES, "little"), 0)

    def _make_room(self, keep: int) -> int:
        """Removes the least recently used cells down to `keep` bytes; counts what is there."""
        files = sorted(
            ((status.st_mtime_ns, status.st_size, path) for path, status in self._files()),
            reverse=True,
        )
        total = 0
        for _, size, path in files:
            if total + size <= keep:
                total += size
            else:
                keep = total
                path.unlink(missing_ok=True)
        return total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                try:
                    yield Path(entry.path), entry.stat()
                except FileNotFoundError:
                    # Another process put it in its place, or removed it.
                    continue

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A descriptor of its own: a lock belongs to an open file, and threads share this object.
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _turn_off(self, error: OSError) -> None:
        if self.enabled:
            logger.warning("no cache in %s (%s): cells come from the store", self.folder, error)
        self.enabled = False


@lru_cache(maxsize=8)
def open_cache(folder: str, limit: int) -> CellCache:
    """The cache of a folder; one for all readers of this process."""
    return CellCache(folder, limit)


def _attempt_touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        # Removed by another process just now, or a disk that can only be read.
        return

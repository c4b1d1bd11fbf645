"""Cells of remote datasets kept on this node's disk, for all its processes together.

One file per cell, named by where it lies and what it holds, so that no change of a dataset can
be answered with old pixels. Every read is checked against the cell's checksum. A disk that fails
costs speed, never the run.

A full cache keeps what it has and takes nothing in. Epochs run through all tiles in a random
order, so that the cell that was not read for longest is the one that comes soonest: a cache of a
quarter of a dataset answered 3 reads in 100 when it made room for every cell; like this it can
answer 25, without writing. Only datasets that nobody reads any more make room.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from terrafm.data.shards.codec import checksum

logger = logging.getLogger(__name__)

# A dataset that was not read for so long makes room for others.
_IDLE_SECONDS = 3600
# A dataset's folder says when it was read last, to the minute.
_MARK_SECONDS = 60
# A full cache looks so rarely for room: it counts its files then.
_FULL_SECONDS = 600
_NUMBER_BYTES = 8


class CellKey(NamedTuple):
    """What identifies a cell's bytes."""

    dataset: str
    shard: str
    offset: int
    length: int
    checksum: int


class CellCache:
    """A folder of cells with a limit in bytes; safe in several threads and processes.

    Args:
        folder: local; made where it is missing.
        limit: bytes of all cells in it. What is being written while the files are counted, which
            is rare, comes on top.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.enabled = True
        self._full_until = 0.0
        self._marked: dict[Path, float] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._numbers = os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            self._turn_off(error)

    def get(self, key: CellKey) -> bytes | None:
        """A cell's bytes, or None where they are not kept; a damaged file is dropped."""
        if not self.enabled:
            return None
        path = self._path(key)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Missing, or removed by another process just now.
            return None
        try:
            cell = os.pread(file, key.length, 0)
            size = os.fstat(file).st_size
        except OSError as error:
            self._turn_off(error)
            return None
        finally:
            os.close(file)
        if len(cell) == key.length and checksum(cell) == key.checksum:
            self._mark_used(path.parents[1])
            return cell
        logger.warning("%s in the cache is damaged: dropped, and read from the store", path)
        try:
            with self._locked():
                path.unlink(missing_ok=True)
                total, full_since = self._read_numbers()
                self._write_numbers(total - size, full_since)
        except OSError as error:
            self._turn_off(error)
        return None

    def put(self, cells: Sequence[tuple[CellKey, bytes | memoryview]]) -> None:
        """Keeps cells, where there is room for all of them; they must have been checked."""
        if not self.enabled or time.monotonic() < self._full_until:
            return
        try:
            if not self._reserve(sum(len(cell) for _, cell in cells)):
                self._full_until = time.monotonic() + _FULL_SECONDS
                return
            for key, cell in cells:
                path = self._path(key)
                _write(path, cell)
                self._mark_used(path.parents[1])
        except OSError as error:
            self._turn_off(error)

    def _path(self, key: CellKey) -> Path:
        dataset = hashlib.sha256(key.dataset.encode()).hexdigest()[:16]
        name = hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:40]
        return self.folder / dataset / name[:2] / name[2:]

    def _reserve(self, size: int) -> bool:
        """Counts bytes before they come, so that a killed process leaves too high a count."""
        with self._locked():
            total, full_since = self._read_numbers()
            if total + size > self.limit and abs(time.time() - full_since) > _FULL_SECONDS:
                total, full_since = self._make_room(size), int(time.time())
                self._write_numbers(total, full_since)
            if total + size > self.limit:
                return False
            self._write_numbers(total + size, full_since)
            return True

    def _make_room(self, needed: int) -> int:
        """Removes datasets that are out of use, the longest first; returns the bytes left."""
        sizes = {}
        for folder in self.folder.iterdir():
            if folder.is_dir():
                sizes[folder] = (folder.stat().st_mtime, _tree_bytes(folder))
        total = sum(size for _, size in sizes.values())
        for folder, (used, size) in sorted(sizes.items(), key=lambda item: item[1]):
            if total + needed <= self.limit or time.time() - used < _IDLE_SECONDS:
                break
            shutil.rmtree(folder)
            total -= size
        return total

    def _mark_used(self, dataset: Path) -> None:
        now = time.monotonic()
        if now - self._marked.get(dataset, -_MARK_SECONDS) >= _MARK_SECONDS:
            self._marked[dataset] = now
            try:
                os.utime(dataset)
            except OSError:
                # Removed just now, or a disk that can only be read.
                return

    def _read_numbers(self) -> tuple[int, int]:
        """Bytes of all files, and when the cache was last found full, in seconds since 1970."""
        known = os.pread(self._numbers, 2 * _NUMBER_BYTES, 0)
        return (
            int.from_bytes(known[:_NUMBER_BYTES], "little"),
            int.from_bytes(known[_NUMBER_BYTES:], "little"),
        )

    def _write_numbers(self, total: int, full_since: int) -> None:
        content = b"".join(
            max(0, number).to_bytes(_NUMBER_BYTES, "little") for number in (total, full_since)
        )
        os.pwrite(self._numbers, content, 0)

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


def _write(path: Path, cell: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            temporary.write_bytes(cell)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(cell)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _tree_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                # Another process put it in its place just now; its size is that of the other name.
                continue
    return total

"""Cells of remote datasets kept on this node's disk, for all its processes together.

One file per cell, named by where it lies and what it holds, so that no change of a dataset can
be answered with old pixels. Every read is checked against the cell's checksum. A disk that fails
costs speed, never the run. Nor does filling it: readers leave their cells to a thread of the
lowest priority, and what that has no time for is passed over until the cell is read again.

A full cache keeps what it has and takes nothing in. Epochs run through all tiles in a random
order, so that the cell that was not read for longest is the one that comes soonest: a cache of a
quarter of a dataset answered 3 reads in 100 when it made room for every cell; like this it can
answer 25, without writing. Only datasets that nobody reads any more make room.
"""

import fcntl
import hashlib
import logging
import os
import queue
import re
import shutil
import struct
import sys
import threading
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
# As `_path` names the folder of a dataset.
_DATASET = re.compile(r"[0-9a-f]{16}")
# A full cache looks so rarely for room: it counts its files then.
_FULL_SECONDS = 600
_NUMBERS = struct.Struct("<3Q")
# Requests whose cells wait to be written, in each process: 5 MB a tile, one to four requests.
_WAITING = 16
_LOWEST_PRIORITY = 19


class CellKey(NamedTuple):
    """What identifies a cell's bytes."""

    dataset: str
    shard: str
    offset: int
    length: int
    checksum: int


Cells = Sequence[tuple[CellKey, bytes | memoryview]]


class Numbers(NamedTuple):
    """What the processes that share a cache know together.

    Attributes:
        kept: bytes of all cells in it.
        full_since: when it was last found full, in seconds since 1970.
        passed_over: bytes of cells that came when there was no time to write them.
    """

    kept: int
    full_since: int
    passed_over: int


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
        self._waiting: queue.Queue[Cells] = queue.Queue(_WAITING)
        self._passed_over = 0
        self._writer = threading.Thread(
            target=self._write_waiting, name="terrafm-cell-cache", daemon=True
        )
        self._starting = threading.Lock()
        self._marked: dict[Path, float] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._numbers_file = os.open(
                self.folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            )
        except OSError as error:
            self._turn_off(error)

    def holds(self, key: CellKey) -> bool:
        """Whether a cell is kept now; `get` may find it damaged or gone."""
        return self.enabled and self._path(key).exists()

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
                numbers = self.numbers()
                self._write_numbers(numbers._replace(kept=numbers.kept - size))
        except OSError as error:
            self._turn_off(error)
        return None

    def put_later(self, cells: Cells) -> None:
        """As `put`, in the time that others leave; cells are passed over where too many wait."""
        if not self._takes:
            return
        with self._starting:
            if self._writer.ident is None:
                self._writer.start()
            try:
                self._waiting.put_nowait(cells)
            except queue.Full:
                self._passed_over += sum(len(cell) for _, cell in cells)

    def flush(self) -> None:
        """Waits until all cells of `put_later` are written."""
        self._waiting.join()

    def put(self, cells: Cells) -> None:
        """Keeps cells, where there is room for all of them; they must have been checked."""
        if not self._takes:
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

    def numbers(self) -> Numbers:
        """Counted by all processes together."""
        content = os.pread(self._numbers_file, _NUMBERS.size, 0).ljust(_NUMBERS.size, b"\0")
        return Numbers(*_NUMBERS.unpack(content))

    @property
    def _takes(self) -> bool:
        return self.enabled and time.monotonic() >= self._full_until

    def _write_waiting(self) -> None:
        if sys.platform == "linux":
            # Elsewhere the call is for the process, not for the thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while True:
            cells = self._waiting.get()
            try:
                self.put(cells)
            finally:
                self._waiting.task_done()

    def _path(self, key: CellKey) -> Path:
        dataset = hashlib.sha256(key.dataset.encode()).hexdigest()[:16]
        name = hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:40]
        return self.folder / dataset / name[:2] / name[2:]

    def _reserve(self, size: int) -> bool:
        """Counts bytes before they come, so that a killed process leaves too high a count."""
        with self._locked():
            numbers = self.numbers()
            if numbers.kept + size > self.limit and self._may_count(numbers):
                numbers = numbers._replace(kept=self._make_room(size), full_since=int(time.time()))
            fits = numbers.kept + size <= self.limit
            passed_over, self._passed_over = self._passed_over, 0
            self._write_numbers(
                numbers._replace(
                    kept=numbers.kept + (size if fits else 0),
                    passed_over=numbers.passed_over + passed_over,
                )
            )
            return fits

    @staticmethod
    def _may_count(numbers: Numbers) -> bool:
        return abs(time.time() - numbers.full_since) > _FULL_SECONDS

    def _make_room(self, needed: int) -> int:
        """Removes datasets that are out of use, the longest first; returns the bytes left."""
        sizes = {}
        for folder in self.folder.iterdir():
            # The folder is the user's choice, and other things may lie in it.
            ours = _DATASET.fullmatch(folder.name) and not folder.is_symlink()
            if ours and folder.is_dir():
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

    def _write_numbers(self, numbers: Numbers) -> None:
        os.pwrite(self._numbers_file, _NUMBERS.pack(*(max(0, number) for number in numbers)), 0)

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

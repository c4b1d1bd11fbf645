"""Cells of tiles by range reads: checked, kept in a local cache, and read ahead."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from terrafm.config import DataConfig
from terrafm.data.shards.cell_cache import CellCache, CellKey, open_cache
from terrafm.data.shards.codec import checksum, decode
from terrafm.data.shards.manifest import CellGroup
from terrafm.errors import TerraFMError
from terrafm.storage import join
from terrafm.storage.faults import explain, one_line, patiently
from terrafm.storage.ranges import open_ranges
from terrafm.storage.slots import request_slot

# Cells of one tile are neighbours, page headers apart: below this gap one request serves both.
_MERGE_GAP = 4096
_TILES_AHEAD = 8
# Range requests of a node at once; threads of a process that make them.
_MOST_REQUESTS, _THREADS = 64, 32
_GONE = "cannot be read"

Tile = dict[str, NDArray[Any]]
Cell = bytes | memoryview


class DamagedTileError(TerraFMError):
    """A tile's bytes are not those that its index promises.

    Attributes:
        tile: id of the tile.
        shard: URI of its shard.
        cell: name of the cell group.
        reason: what is wrong with it.
    """

    def __init__(self, tile: str, shard: str, cell: str, reason: str) -> None:
        self.tile, self.shard, self.cell, self.reason = tile, shard, cell, reason
        super().__init__(tile, shard, cell, reason)

    def __str__(self) -> str:
        fate = "is missing:" if self.reason == _GONE else "is damaged: remove it and"
        return (
            f"tile {self.tile}: {self.cell} {self.reason}; shard {self.shard} {fate} ingest again"
        )

    def record(self) -> dict[str, str]:
        """What a quarantine list keeps of it."""
        return {
            "tile": self.tile,
            "shard": self.shard,
            "cell": self.cell,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class _Run:
    """Neighbouring cells of one tile, read with one request."""

    shard: str
    tile: str
    start: int
    stop: int
    cells: tuple[tuple[str, int, int, int], ...]


class CellReader:
    """Reads cells of a dataset by byte range; holds no pixels and no index.

    Args:
        uri: the dataset's folder.
        groups: the dataset's cell groups.
        config: bounds of requests and cache; the defaults where None.
    """

    def __init__(
        self, uri: str, groups: Sequence[CellGroup], config: DataConfig | None = None
    ) -> None:
        config = config or DataConfig()
        self.uri = uri
        self.groups = {group.name: group for group in groups}
        self._ranges = open_ranges(uri)
        self.local = self._ranges.local
        self._cache: CellCache | None = None
        if config.cache_dir is not None and not self.local:
            self._cache = open_cache(config.cache_dir, config.cache_bytes)

    def read(
        self, locations: pa.Table, wanted: Sequence[Sequence[str]] | None = None
    ) -> list[Tile]:
        """Pixels of some tiles.

        Args:
            locations: rows as from `Dataset.locations`, one per tile.
            wanted: per tile the names of the cell groups to read; all of them by default. Groups
                that a tile does not have are left out of the answer.

        Returns:
            Per tile: cell group name -> (bands, h, w) storage integers.

        Raises:
            DamagedTileError: a shard is missing, cut short or damaged; names shard and tile.
            TerraFMError: the store fails for too long or refuses.
        """
        tiles = []
        for tile in self.read_ahead(locations, wanted):
            if isinstance(tile, DamagedTileError):
                raise tile
            tiles.append(tile)
        return tiles

    def read_ahead(
        self,
        locations: pa.Table,
        wanted: Sequence[Sequence[str]] | None = None,
        tiles_ahead: int = _TILES_AHEAD,
    ) -> Generator[Tile | DamagedTileError, None, None]:
        """Pixels of some tiles, one after the other.

        While a tile is used, requests for the next ones are under way; from a disk each is read
        when its turn comes, so that it is used while it lies in the processor's cache.

        Args:
            locations: as in `read`.
            wanted: as in `read`.
            tiles_ahead: tiles whose requests are under way at once.

        Yields:
            In the order of the rows: a tile, or what is wrong with it.

        Raises:
            TerraFMError: the store fails for too long or refuses.
        """
        columns = {name: locations[name].to_pylist() for name in locations.column_names}
        ahead: deque[list[Callable[[], dict[str, Cell]]]] = deque()
        following = 0
        for row in range(locations.num_rows):
            last = min(locations.num_rows, row + 1 + (0 if self.local else tiles_ahead))
            while following < last:
                names = list(self.groups) if wanted is None else wanted[following]
                ahead.append(self._request(columns, following, names))
                following += 1
            try:
                yield self._decode(ahead.popleft(), columns["tile_id"][row], columns["shard"][row])
            except DamagedTileError as damage:
                yield damage

    def _request(
        self, columns: dict[str, list[Any]], row: int, names: Sequence[str]
    ) -> list[Callable[[], dict[str, Cell]]]:
        """Starts reading a tile's cells: functions that wait for them."""
        shard, tile = columns["shard"][row], columns["tile_id"][row]
        cells = sorted(
            (columns[f"{name}.offset"][row], length, columns[f"{name}.checksum"][row], name)
            for name in names
            if (length := columns[f"{name}.length"][row])
        )
        waits: list[Callable[[], dict[str, Cell]]] = []
        missing = []
        for cell in cells:
            offset, length, check, name = cell
            if self._cache is not None and self._cache.holds(self._key(shard, *cell[:3])):
                one = _Run(shard, tile, offset, offset + length, ((name, *cell[:3]),))
                waits.append(partial(self._from_cache, one))
            else:
                missing.append((name, offset, length, check))
        for run in _runs(shard, tile, missing):
            if self.local:
                waits.append(partial(self._fetch, run))
            else:
                waits.append(_threads().submit(self._fetch, run).result)
        return waits

    def _from_cache(self, run: _Run) -> dict[str, Cell]:
        """A single cell, read when its turn comes, as from a local file."""
        assert self._cache is not None
        name, *place = run.cells[0]
        kept = self._cache.get(self._key(run.shard, *place))
        return self._fetch(run) if kept is None else {name: kept}

    def _fetch(self, run: _Run) -> dict[str, Cell]:
        """One request, its cells checked and left to the cache."""
        for final in (self.local, True):
            chunk = self._read(run)
            found: dict[str, Cell] = {}
            reason = ""
            for name, offset, length, check in run.cells:
                cell = chunk[offset - run.start : offset - run.start + length]
                if len(cell) != length:
                    reason = "is cut short"
                elif checksum(cell) != check:
                    reason = "does not match its checksum"
                if reason:
                    break
                found[name] = cell
            if not reason:
                break
            # Damage on the way is cured by reading once more.
            if final:
                raise DamagedTileError(run.tile, join(self.uri, run.shard), name, reason)
        if self._cache is not None:
            self._cache.put_later(
                [
                    (self._key(run.shard, offset, length, check), found[name])
                    for name, offset, length, check in run.cells
                ]
            )
        return found

    def _read(self, run: _Run) -> memoryview:
        where = join(self.uri, run.shard)

        def attempt() -> Cell:
            if self.local:
                return self._ranges.read(run.shard, run.start, run.stop)
            with request_slot(_MOST_REQUESTS):
                return self._ranges.read(run.shard, run.start, run.stop)

        try:
            return memoryview(attempt() if self.local else patiently(attempt, where))
        except FileNotFoundError:
            names = ", ".join(name for name, *_ in run.cells)
            raise DamagedTileError(run.tile, where, names, _GONE) from None
        except TerraFMError:
            raise
        except Exception as error:
            if self.local:
                name = run.cells[0][0]
                raise DamagedTileError(run.tile, where, name, one_line(error)) from error
            raise explain(error, "read", where) from error

    def _decode(self, waits: list[Callable[[], dict[str, Cell]]], tile_id: str, shard: str) -> Tile:
        tile = {}
        for wait in waits:
            for name, cell in wait().items():
                group = self.groups[name]
                try:
                    tile[name] = decode(cell, group.shape, group.dtype, group.codec)
                except ValueError as error:
                    where = join(self.uri, shard)
                    raise DamagedTileError(tile_id, where, name, str(error)) from None
        return tile

    def _key(self, shard: str, offset: int, length: int, check: int) -> CellKey:
        return CellKey(self.uri, shard, offset, length, check)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="terrafm-cells")


def _runs(shard: str, tile: str, cells: Sequence[tuple[str, int, int, int]]) -> list[_Run]:
    """Byte ranges of one tile's cells (name, offset, length, checksum), neighbours merged."""
    groups: list[list[tuple[str, int, int, int]]] = []
    for cell in cells:
        if groups and cell[1] - sum(groups[-1][-1][1:3]) <= _MERGE_GAP:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return [_Run(shard, tile, group[0][1], sum(group[-1][1:3]), tuple(group)) for group in groups]

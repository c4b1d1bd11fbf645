"""The reading side of a dataset: the index in memory, cells by range reads."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm.data.codec import checksum, decode
from terrafm.data.manifest import CellGroup, Manifest, read_manifest
from terrafm.errors import TerraFMError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import is_local, join, read_bytes, resolve

# Cells of one tile are neighbours, page headers apart: below this gap one request serves both.
_MERGE_GAP = 4096
_OPEN_FILES = 128
_PARALLEL_RANGES = 16


class CellReader:
    """Reads cells of a dataset by byte range; holds no pixels and no index.

    Args:
        uri: the dataset's folder.
        groups: the dataset's cell groups.
    """

    def __init__(self, uri: str, groups: Sequence[CellGroup]) -> None:
        self.uri = uri
        self.groups = {group.name: group for group in groups}
        self.local = is_local(uri)
        self._filesystem, self._root = resolve(uri)
        self._open = lru_cache(maxsize=_OPEN_FILES)(_Descriptor)

    def read(
        self, locations: pa.Table, wanted: Sequence[Sequence[str]] | None = None
    ) -> list[dict[str, NDArray[Any]]]:
        """Pixels of some tiles.

        Args:
            locations: rows as from `Dataset.locations`, one per tile.
            wanted: per tile the names of the cell groups to read; all of them by default. Groups
                that a tile does not have are left out of the answer.

        Returns:
            Per tile: cell group name -> (bands, h, w) storage integers.

        Raises:
            TerraFMError: a shard is missing, cut short or damaged; names shard and tile.
        """
        columns = {name: locations[name].to_pylist() for name in locations.column_names}
        requests: list[tuple[int, list[str], int, int]] = []
        for row in range(locations.num_rows):
            names = list(self.groups) if wanted is None else wanted[row]
            requests += [(row, *run) for run in _runs(columns, row, names)]
        chunks = self._fetch(columns, requests)
        tiles: list[dict[str, NDArray[Any]]] = [{} for _ in range(locations.num_rows)]
        for (row, names, start, _), chunk in zip(requests, chunks, strict=True):
            for name in names:
                begin = columns[f"{name}.offset"][row] - start
                cell = chunk[begin : begin + columns[f"{name}.length"][row]]
                tiles[row][name] = self._decode(name, cell, columns, row)
        return tiles

    def _decode(
        self, name: str, cell: memoryview, columns: dict[str, list[Any]], row: int
    ) -> NDArray[Any]:
        group = self.groups[name]
        fault = ""
        if len(cell) != columns[f"{name}.length"][row]:
            fault = "is cut short"
        elif checksum(cell) != columns[f"{name}.checksum"][row]:
            fault = "does not match its checksum"
        else:
            try:
                return decode(cell, group.shape, group.dtype)
            except ValueError as error:
                fault = str(error)
        raise TerraFMError(
            f"tile {columns['tile_id'][row]}: {name} {fault}; shard "
            f"{join(self.uri, columns['shard'][row])} is damaged: remove it and ingest again"
        )

    def _fetch(
        self, columns: dict[str, list[Any]], requests: list[tuple[int, list[str], int, int]]
    ) -> list[memoryview]:
        shards = [columns["shard"][row] for row, *_ in requests]
        if self.local:
            answers = [
                self._attempt(self._pread, shard, start, stop)
                for shard, (_, _, start, stop) in zip(shards, requests, strict=True)
            ]
        else:
            answers = self._filesystem.cat_ranges(
                [join(self._root, shard) for shard in shards],
                [start for _, _, start, _ in requests],
                [stop for *_, stop in requests],
                on_error="return",
                batch_size=_PARALLEL_RANGES,
            )
        chunks = []
        for (row, *_), shard, answer in zip(requests, shards, answers, strict=True):
            if isinstance(answer, Exception):
                why = "is missing" if isinstance(answer, FileNotFoundError) else str(answer)
                raise TerraFMError(
                    f"tile {columns['tile_id'][row]}: cannot read shard "
                    f"{join(self.uri, shard)}: {why}"
                )
            chunks.append(memoryview(answer))
        return chunks

    def _pread(self, shard: str, start: int, stop: int) -> bytes:
        return os.pread(self._open(join(self._root, shard)).number, stop - start, start)

    @staticmethod
    def _attempt(read: Any, *arguments: Any) -> bytes | Exception:
        try:
            content: bytes = read(*arguments)
        except OSError as error:
            return error
        return content


class Dataset:
    """An ingested dataset: tiles by row number, in the order of their ids.

    Opening reads the manifest and the index, never a shard. Row numbers are stable for a
    fingerprint.
    """

    def __init__(self, uri: str, manifest: Manifest, index: pa.Table) -> None:
        self.uri = uri
        self.manifest = manifest
        self.index = index

    @classmethod
    def open(cls, uri: str | os.PathLike[str], version: int | None = None) -> "Dataset":
        """Opens a dataset.

        Args:
            uri: the dataset's folder.
            version: an older version; the newest by default.

        Raises:
            UsageError: missing, not a dataset, unfinished, empty or unreadable.
        """
        uri = os.fspath(uri).rstrip("/")
        manifest = read_manifest(uri, version)
        where = join(uri, manifest.index.name)
        try:
            content = read_bytes(where)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the dataset's index {where}: {error}") from None
        if hashlib.sha256(content).hexdigest() != manifest.index.sha256:
            raise UsageError(f"{where} does not match the manifest: restore it or ingest again")
        # Not io.BytesIO: Arrow's threads may hold the Python object when Python ends, and abort.
        index = pq.read_table(pa.BufferReader(content)).combine_chunks()
        if index.num_rows == 0:
            raise UsageError(f"dataset {uri} is empty")
        return cls(uri, manifest, index)

    def __len__(self) -> int:
        return self.manifest.tiles

    @property
    def fingerprint(self) -> str:
        """Identifies the content: tiles, pixels, statistics, legend."""
        return self.manifest.fingerprint

    @property
    def tile_size(self) -> int:
        """Side of a tile at the finest GSD, pixels."""
        return self.manifest.tile_size

    @property
    def gsd(self) -> int:
        """Finest ground sampling distance, metres."""
        return self.manifest.gsd

    @property
    def groups(self) -> tuple[CellGroup, ...]:
        """The arrays that a tile has."""
        return self.manifest.groups

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the dataset, in the order of `MODALITIES`."""
        present = {group.modality for group in self.groups}
        return tuple(name for name in MODALITIES if name in present)

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """Modality -> {"bands", "mean", "std"} in model band order, physical units."""
        return {name: s.model_dump() for name, s in self.manifest.statistics.items()}

    @property
    def legend(self) -> dict[int, str]:
        """Land-cover code -> name."""
        return self.manifest.legend

    @property
    def report(self) -> dict[str, Any]:
        """What ingest counted and decided."""
        return self.manifest.report

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return self.manifest.bytes

    @cached_property
    def tile_ids(self) -> NDArray[np.object_]:
        """(N,) tile ids."""
        return self._column("tile_id")

    @cached_property
    def land_cover(self) -> NDArray[np.int32]:
        """(N,) code of each tile's majority class."""
        return self._column("land_cover")

    @cached_property
    def latitude(self) -> NDArray[np.float64]:
        """(N,) degrees, of the tile's centre."""
        return self._column("latitude")

    @cached_property
    def longitude(self) -> NDArray[np.float64]:
        """(N,) degrees, of the tile's centre."""
        return self._column("longitude")

    @cached_property
    def climate(self) -> NDArray[np.int32]:
        """(N,) climate zone at each tile's centre; 0 where it is not known."""
        if "climate" not in self.index.column_names:
            return np.zeros(len(self), dtype=np.int32)
        return self._column("climate")

    @cached_property
    def available(self) -> NDArray[np.bool_]:
        """(N, M) whether a tile has a modality, in the order of `modalities`."""
        columns = []
        for modality in self.modalities:
            names = [g.name for g in self.groups if g.modality == modality]
            columns.append(np.all([self._column(f"{n}.length") > 0 for n in names], axis=0))
        return np.stack(columns, axis=1)

    def histogram(self, row: int) -> dict[int, int]:
        """Land-cover code -> pixels of one tile."""
        parsed = json.loads(self.index["histogram"][row].as_py())
        return {int(code): count for code, count in parsed.items()}

    def class_counts(self) -> dict[int, int]:
        """Land-cover code -> tiles with that majority class."""
        return dict(self.manifest.class_counts)

    def tile(self, row: int) -> dict[str, Any]:
        """What the index knows about one tile: id, place, histogram, products."""
        columns = self.index.column_names[: self.index.column_names.index("products") + 1]
        fields: dict[str, Any] = self.index.select(columns).slice(row, 1).to_pylist()[0]
        fields["histogram"] = self.histogram(row)
        fields["transform"] = tuple(json.loads(fields["transform"]))
        fields["products"] = json.loads(fields["products"])
        return fields

    def locations(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> pa.Table:
        """What a `CellReader` needs to read some tiles: a small table, one row per tile.

        Columns: tile_id, shard, and per cell group name.offset, name.length, name.checksum; a
        length of 0 says that the tile has not got the group.
        """
        names = ["tile_id", "shard"]
        for group in self.groups:
            names += [f"{group.name}.{part}" for part in ("offset", "length", "checksum")]
        return self.index.select(names).take(pa.array(np.asarray(rows, dtype=np.int64)))

    @cached_property
    def reader(self) -> CellReader:
        """Reads this dataset's cells."""
        return CellReader(self.uri, self.groups)

    def read_tile(
        self, row: int, modalities: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Pixels of one tile.

        Args:
            row: row number of the tile.
            modalities: those to read; all by default.

        Returns:
            Cell group name -> (bands, h, w) storage integers; absent modalities are left out.

        Raises:
            TerraFMError: the shard is missing, cut short or damaged; names shard and tile.
        """
        kept = self.modalities if modalities is None else modalities
        names = [group.name for group in self.groups if group.modality in kept]
        return self.reader.read(self.locations([row]), [names])[0]

    def _column(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = self.index[name].to_numpy()
        return values


class _Descriptor:
    """An open file that closes when it is dropped from the cache."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _runs(
    columns: dict[str, list[Any]], row: int, names: Sequence[str]
) -> list[tuple[list[str], int, int]]:
    """Byte ranges (groups in it, start, stop) of one tile, neighbours merged."""
    cells = sorted(
        (columns[f"{name}.offset"][row], columns[f"{name}.length"][row], name)
        for name in names
        if columns[f"{name}.length"][row]
    )
    runs: list[tuple[list[str], int, int]] = []
    for offset, length, name in cells:
        if runs and offset - runs[-1][2] <= _MERGE_GAP:
            runs[-1] = ([*runs[-1][0], name], runs[-1][1], offset + length)
        else:
            runs.append(([name], offset, offset + length))
    return runs

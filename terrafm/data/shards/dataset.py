"""The reading side of a dataset: tiles by row number, cells by range reads."""

import difflib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terrafm.data.land.regions import region_codes
from terrafm.data.land.selection import WATER, drops_water
from terrafm.data.shards.cells import CellReader
from terrafm.data.shards.entry import PLACE, TileNotes, tile_notes
from terrafm.data.shards.index import Index
from terrafm.data.shards.manifest import (
    CellGroup,
    Manifest,
    find_version,
    list_versions,
    read_manifest,
)
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES


class Dataset:
    """An ingested dataset: tiles by row number, in the order of their ids.

    Opening reads the manifest, never a shard; the index is read in parts, when they are needed.
    Row numbers are stable for a fingerprint.

    Args:
        uri: the dataset's folder.
        manifest: of the version.
        index: its rows.
    """

    def __init__(self, uri: str, manifest: Manifest, index: Index | pa.Table) -> None:
        self.uri = uri
        self.manifest = manifest
        self.rows = index if isinstance(index, Index) else Index.of_table(index)

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        version: int | None = None,
        fingerprint: str | None = None,
    ) -> "Dataset":
        """Opens a dataset.

        Args:
            uri: the dataset's folder.
            version: an older version; the newest by default.
            fingerprint: of the version to open, in place of its number.

        Raises:
            UsageError: missing, not a dataset, unfinished, empty or unreadable; or no version has
                the fingerprint.
        """
        uri = os.fspath(uri).rstrip("/")
        found = None if fingerprint is None else find_version(uri, fingerprint)
        if fingerprint is not None and found is None:
            raise UsageError(
                f"dataset {uri} has no version with fingerprint {fingerprint[:12]}; "
                f"versions: {', '.join(map(str, list_versions(uri)))}"
            )
        manifest = found or read_manifest(uri, version)
        index = Index.open(uri, manifest.index, manifest.groups)
        if len(index) == 0:
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

    def check_modalities(self, wanted: Sequence[str]) -> None:
        """Raises UsageError: it lacks some of those that a run is to train on."""
        missing = [name for name in wanted if name not in self.modalities]
        if missing:
            held = [name for name in wanted if name in self.modalities] or self.modalities
            raise UsageError(
                f"dataset {self.uri} has no {', '.join(missing)}: set data.modalities to "
                f"[{', '.join(held)}]"
            )

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

    @property
    def index(self) -> pa.Table:
        """The whole index, read into memory: some 2 kB for each tile."""
        return self.rows.table()

    @cached_property
    def tile_ids(self) -> NDArray[np.object_]:
        """(N,) tile ids."""
        return self._column("tile_id")

    @cached_property
    def land_cover(self) -> NDArray[np.int32]:
        """(N,) code of each tile's majority class."""
        return self._column("land_cover")

    def sampled(self, water_keep: float) -> NDArray[np.bool_] | None:
        """(N,) whether a tile is sampled where only a share of the water is; None at a share of 1.

        Args:
            water_keep: share of the tiles of class water, 0..1, chosen by their ids.
        """
        if water_keep == 1:
            return None
        kept: NDArray[np.bool_] = self.land_cover != WATER
        for row in np.flatnonzero(~kept).tolist():
            kept[row] = not drops_water(str(self.tile_ids[row]), 0, 1 - water_keep)
        return kept

    @cached_property
    def latitude(self) -> NDArray[np.float64]:
        """(N,) degrees, of the tile's centre."""
        return self._column("latitude")

    @cached_property
    def longitude(self) -> NDArray[np.float64]:
        """(N,) degrees, of the tile's centre."""
        return self._column("longitude")

    @cached_property
    def regions(self) -> NDArray[np.int32]:
        """(N,) code of the region in which each tile's centre lies."""
        return region_codes(self._column("latitude"), self._column("longitude"))

    @cached_property
    def climate(self) -> NDArray[np.int32]:
        """(N,) climate zone at each tile's centre; 0 where it is not known."""
        if "climate" not in self.rows.column_names:
            return np.zeros(len(self), dtype=np.int32)
        return self._column("climate")

    @cached_property
    def places(self) -> NDArray[np.object_]:
        """(N,) names of the ground: tiles of several dates share one, any other has its own id."""
        if PLACE not in self.rows.column_names:
            return self.tile_ids
        named = self._column(PLACE)
        return np.where(named == "", self.tile_ids, named)

    @cached_property
    def available(self) -> NDArray[np.bool_]:
        """(N, M) whether a tile has a modality, in the order of `modalities`."""
        columns = []
        for modality in self.modalities:
            has = np.ones(len(self), dtype=bool)
            for group in self.groups:
                if group.modality == modality:
                    has &= self._column(f"{group.name}.length") > 0
            columns.append(has)
        return np.stack(columns, axis=1)

    def histogram(self, row: int) -> dict[int, int]:
        """Land-cover code -> pixels of one tile."""
        found: dict[int, int] = self._notes(row, ["tile_id", *TileNotes.__annotations__])[
            "histogram"
        ]
        return found

    def class_counts(self) -> dict[int, int]:
        """Land-cover code -> tiles with that majority class."""
        return dict(self.manifest.class_counts)

    def tile(self, row: int) -> dict[str, Any]:
        """What the index knows about one tile: id, place, histogram, products."""
        names = self.rows.column_names
        return self._notes(row, names[: names.index("products") + 1])

    def _notes(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        fields = self.rows.notes(row, names)
        return {**fields, **tile_notes(fields, self.rows.where)}

    def row_of(self, tile_id: str) -> int:
        """Row number of a tile.

        Raises:
            UsageError: the dataset has no such tile; names the nearest ids.
        """
        row = int(self.rows.find([tile_id])[0])
        if row < 0:
            near = difflib.get_close_matches(tile_id, self.rows.near(tile_id), n=3, cutoff=0.0)
            raise UsageError(
                f"dataset {self.uri} has no tile {tile_id!r}; the nearest ids are {', '.join(near)}"
            )
        return row

    def locations(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> pa.Table:
        """What a `CellReader` needs to read some tiles: a small table, one row per tile.

        Columns: tile_id, shard, and per cell group name.offset, name.length, name.checksum; a
        length of 0 says that the tile has not got the group.
        """
        names = ["tile_id", "shard"]
        for group in self.groups:
            names += [f"{group.name}.{part}" for part in ("offset", "length", "checksum")]
        return self.rows.take(rows, names)

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
        return self.rows.column(name)

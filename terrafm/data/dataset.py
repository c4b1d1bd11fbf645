"""The reading side of a dataset: the index in memory, and a reader of its cells."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm.data.cells import CellReader
from terrafm.data.manifest import CellGroup, Manifest, read_manifest
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import join, read_bytes


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

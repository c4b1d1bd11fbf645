"""Shards of one dataset taken over into another, without the tiles that are there already."""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terrafm.data.ingest.tally import Tally
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import (
    TILE_FIELDS,
    ShardEntry,
    TileRecord,
    index_schema,
    shard_path,
    tile_notes,
)
from terrafm.data.shards.scratch import publish, scratch_file
from terrafm.data.shards.writer import read_shard_entry, write_shard
from terrafm.errors import TerraFMError
from terrafm.storage import copy, is_local, join, resolve


@dataclass
class Adoption:
    """Takes shards over.

    Attributes:
        into: the version that is added to.
        source: the dataset whose shards are taken; its cell groups are among those of `into`.
        prefix: of the shards' new names.
        fresh: tiles taken over so far.
        known: tiles left out so far, for `into` has them.
    """

    into: Dataset
    source: Dataset
    prefix: str
    fresh: int = 0
    known: int = 0

    def take(self, entry: ShardEntry) -> ShardEntry | None:
        """Takes one shard over, or what is new in it; None where nothing is.

        Raises:
            TerraFMError: a tile id that the dataset has with other content.
        """
        places = self.into.rows.find(entry.rows["tile_id"].to_pylist())
        known = places >= 0
        self._refuse_conflicts(entry, places)
        self.known += int(known.sum())
        self.fresh += int((~known).sum())
        if known.all():
            return None
        name = f"{self.prefix}-{entry.name}"
        if known.any():
            return self._rewritten(entry, ~known, name)
        done = read_shard_entry(self.into.uri, name)
        if done is None or done.sha256 != entry.sha256:
            self._copy(entry, name)
        return self._registered(entry, entry.rows, name)

    def _refuse_conflicts(self, entry: ShardEntry, places: NDArray[np.int64]) -> None:
        here = np.flatnonzero(places >= 0)
        names = [
            name
            for name in entry.rows.column_names
            if name != "shard"
            and not name.endswith(".offset")
            # An index of an earlier version has no places.
            and name in self.into.rows.column_names
        ]
        ours = entry.rows.select(names).take(pa.array(here))
        theirs = self.into.rows.take(places[here], names)
        for name in names:
            differs = pc.index(pc.not_equal(ours[name], theirs[name]), True).as_py()
            if differs >= 0:
                raise TerraFMError(
                    f"tile {ours['tile_id'][differs].as_py()} is in {self.into.uri} already, with "
                    f"another {name}; nothing was appended: give the new tiles other names, or "
                    "make a dataset of their own"
                )

    def _copy(self, entry: ShardEntry, name: str) -> None:
        source, target = join(self.source.uri, entry.path), join(self.into.uri, shard_path(name))
        if not is_local(target):
            copy(source, target)
            return
        path = resolve(source)[1]
        with scratch_file(target) as scratch:
            try:
                # A second name for the same bytes costs nothing where the disk knows such.
                os.link(path, scratch)
            except OSError:
                shutil.copyfile(path, scratch)
            publish(scratch, target)

    def _registered(self, entry: ShardEntry, rows: pa.Table, name: str) -> ShardEntry:
        schema = index_schema(self.into.groups)
        here = pa.array([shard_path(name)] * rows.num_rows)
        rows = rows.set_column(rows.column_names.index("shard"), "shard", here)
        for column in schema.names:
            if column not in rows.column_names:
                # Cells that the archive does not have: nothing, nowhere.
                rows = rows.append_column(column, pa.array(np.zeros(len(rows), np.int64)))
        table = rows.select(schema.names).cast(schema)
        taken = ShardEntry(name, entry.bytes, entry.sha256, table, entry.extra)
        taken.write(self.into.uri)
        return taken

    def _rewritten(self, entry: ShardEntry, fresh: NDArray[np.bool_], name: str) -> ShardEntry:
        """A shard of only the fresh tiles, with their share of the sums."""
        tally = Tally()
        rows = entry.rows.filter(pa.array(fresh))
        groups = self.source.groups

        def records() -> Any:
            for number, row in enumerate(rows.to_pylist()):
                pixels = self.source.reader.read(rows.slice(number, 1))[0]
                record = record_of(row, pixels)
                for group in groups:
                    if group.name in pixels:
                        tally.add_pixels(group.modality, group.bands, pixels[group.name])
                tally.codes |= set(record.histogram)
                yield record
            extra["tally"] = tally.to_json()

        extra: dict[str, Any] = {}
        written = write_shard(self.into.uri, name, records(), groups, extra)
        return self._registered(written, written.rows, name)


def record_of(row: dict[str, Any], pixels: dict[str, NDArray[Any]]) -> TileRecord:
    """The tile of an index row and its pixels, as it was handed to the shard's writer."""
    values = {field.name: row[field.name] for field in TILE_FIELDS}
    return TileRecord(arrays=pixels, **{**values, **tile_notes(values, str(row["shard"]))})

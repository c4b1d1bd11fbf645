"""The second pass of an ingest with `ingest.max_tiles`: shards without the tiles that must go.

Which tiles stay is known only when all are cut. A shard that keeps all its tiles is left as it
is, one that keeps none is forgotten, any other is written again from its own cells: no archive
file is read twice, and no dropped tile leaves bytes behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terrafm.data.ingest.tally import Tally
from terrafm.data.land.selection import choose_tiles, stratum_columns
from terrafm.data.shards.cells import CellReader
from terrafm.data.shards.entry import ShardEntry, TileRecord, tile_notes
from terrafm.data.shards.manifest import CellGroup
from terrafm.data.shards.writer import write_shard


def kept_rows(
    entries: Sequence[ShardEntry], spread: Sequence[str], most: int, seed: int
) -> list[NDArray[np.bool_]]:
    """Which tiles of each shard stay where the dataset may have only `most`.

    Args:
        entries: all shards.
        spread: over what the choice is spread, out of `selection.SPREADS`.
        most: tiles of the dataset.
        seed: of the choice.

    Returns:
        For each shard, (rows,) True for the tiles that stay.
    """
    names = ["tile_id", "land_cover", "climate", "latitude", "longitude"]
    table = pa.concat_tables([entry.rows.select(names) for entry in entries])
    columns = {name: table[name].to_numpy() for name in names[1:]}
    ids = table["tile_id"].to_pylist()
    kept = choose_tiles(ids, stratum_columns(spread, columns), most, seed)
    ends = np.cumsum([entry.rows.num_rows for entry in entries])
    return np.split(kept, ends[:-1])


def write_thinned(
    dataset_uri: str,
    entry: ShardEntry,
    rows: NDArray[np.bool_],
    name: str,
    groups: Sequence[CellGroup],
    extra: Mapping[str, Any],
) -> ShardEntry:
    """Writes some tiles of a shard into a new one; its entry carries their own tally.

    Holds one tile in memory at a time.

    Raises:
        TerraFMError: the shard is missing or damaged.
    """
    tally = Tally()
    content = dict(extra)

    def records() -> Iterator[TileRecord]:
        reader = CellReader(dataset_uri, groups)
        kept = entry.rows.filter(pa.array(rows))
        for row in range(kept.num_rows):
            location = kept.slice(row, 1)
            lengths = {g.name: location[f"{g.name}.length"][0].as_py() for g in groups}
            wanted = [group for group in lengths if lengths[group]]
            arrays = reader.read(location, [wanted])[0]
            record = _record(location.to_pylist()[0], arrays)
            tally.codes |= set(record.histogram)
            for group in groups:
                if group.name in arrays:
                    tally.add_pixels(group.modality, group.bands, arrays[group.name])
            yield record
        content["tally"] = tally.to_json()

    return write_shard(dataset_uri, name, records(), groups, content)


def _record(row: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> TileRecord:
    notes = tile_notes(row, row["shard"])
    return TileRecord(
        tile_id=row["tile_id"],
        arrays=arrays,
        land_cover=row["land_cover"],
        histogram=notes["histogram"],
        crs=row["crs"],
        transform=notes["transform"],
        latitude=row["latitude"],
        longitude=row["longitude"],
        products=notes["products"],
        climate=row["climate"],
        place=row["place"],
    )

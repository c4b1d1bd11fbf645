"""A tile on its way into a shard, and what is kept of a finished shard: its rows of the index."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from terrafm.data.shards.manifest import CellGroup
from terrafm.storage import join, read_bytes, remove, write_bytes
from terrafm.storage.parquet import read_arrow

PLACE = "place"
"""Column that datasets of earlier versions do not have."""

TILE_FIELDS = [
    pa.field("tile_id", pa.string(), nullable=False),
    pa.field("land_cover", pa.int32(), nullable=False),
    pa.field("histogram", pa.string(), nullable=False),
    pa.field("crs", pa.string(), nullable=False),
    pa.field("transform", pa.string(), nullable=False),
    pa.field("latitude", pa.float64(), nullable=False),
    pa.field("longitude", pa.float64(), nullable=False),
    pa.field("climate", pa.int32(), nullable=False),
    pa.field(PLACE, pa.string(), nullable=False),
    pa.field("products", pa.string(), nullable=False),
]


@dataclass
class TileRecord:
    """One tile as ingest hands it over.

    Attributes:
        tile_id: unique and stable name, such as "0U_199R_1_0".
        arrays: cell group name -> (bands, h, w) storage integers; absent modalities are left out.
        land_cover: code of the majority class.
        histogram: land-cover code -> pixels.
        crs: coordinate system as an authority string.
        transform: affine coefficients (a, b, c, d, e, f) of the tile's finest grid.
        latitude: of the tile's centre, degrees.
        longitude: of the tile's centre, degrees.
        products: modality -> product id, time and the decisions made; JSON-able.
        climate: climate zone at the tile's centre; 0 where it is not known.
        place: name of the ground where the archive has it at several dates, equal in all tiles
            of it; "" where the tile is the only one of its place.
    """

    tile_id: str
    arrays: dict[str, NDArray[Any]]
    land_cover: int
    histogram: dict[int, int]
    crs: str
    transform: tuple[float, float, float, float, float, float]
    latitude: float
    longitude: float
    products: dict[str, dict[str, Any]]
    climate: int = 0
    place: str = ""


@dataclass
class ShardEntry:
    """A finished shard: its proof of wholeness and its rows of the index.

    Attributes:
        name: shard name, without folder and suffix.
        bytes: size of the file; 0 for a shard without tiles, which has no file.
        sha256: of the file.
        rows: one index row per tile.
        extra: whatever ingest wants back with the shard (sums, quarantine); JSON-able.
    """

    name: str
    bytes: int
    sha256: str
    rows: pa.Table
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """File name inside the dataset."""
        return shard_path(self.name)

    @classmethod
    def read(cls, dataset_uri: str, name: str) -> "ShardEntry | None":
        """What `write` left of a shard; None where there is nothing whole."""
        try:
            content = read_bytes(_entry_uri(dataset_uri, name))
            table = read_arrow(content)
            head = json.loads(table.schema.metadata[b"entry"])
            if head["name"] != name:
                # Files are removed and renamed by it.
                return None
            rows = _with_place(table.replace_schema_metadata(None))
            return cls(head["name"], head["bytes"], head["sha256"], rows, head["extra"])
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
            return None

    def remove(self, dataset_uri: str) -> None:
        """Forgets that the shard is finished: it will be written again."""
        remove(_entry_uri(dataset_uri, self.name))

    def write(self, dataset_uri: str) -> None:
        """Keeps the entry beside its shard."""
        head = {
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "extra": self.extra,
        }
        table = self.rows.replace_schema_metadata({"entry": json.dumps(head, sort_keys=True)})
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_bytes(_entry_uri(dataset_uri, self.name), sink.getvalue())


def shard_path(name: str) -> str:
    """Path of a shard inside its dataset."""
    return f"shards/{name}.parquet"


def index_schema(groups: Sequence[CellGroup]) -> pa.Schema:
    """Columns of the index: where a tile lies, what it shows, and its cells' byte ranges."""
    cells = []
    for group in groups:
        cells += [
            pa.field(f"{group.name}.offset", pa.int64(), nullable=False),
            pa.field(f"{group.name}.length", pa.int64(), nullable=False),
            pa.field(f"{group.name}.checksum", pa.uint32(), nullable=False),
        ]
    return pa.schema([pa.field("shard", pa.string(), nullable=False), *TILE_FIELDS, *cells])


def _entry_uri(dataset_uri: str, shard_name: str) -> str:
    return join(dataset_uri, "entries", f"{shard_name}.arrow")


def _with_place(rows: pa.Table) -> pa.Table:
    """Rows with the column of places, which entries of earlier versions do not have."""
    if PLACE in rows.column_names:
        return rows
    field = next(field for field in TILE_FIELDS if field.name == PLACE)
    at = rows.column_names.index("products")
    return rows.add_column(at, field, pa.array([""] * rows.num_rows))

"""A tile on its way into a shard, and what is kept of a finished shard: its rows of the index."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from typing_extensions import TypedDict

from terrafm.data.shards.manifest import CellGroup
from terrafm.errors import TerraFMError
from terrafm.storage import join, parse_json, read_bytes, remove, to_json, write_bytes
from terrafm.storage.parquet import read_arrow
from terrafm.storage.records import Count, Finite, validated

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


# Column -> what it holds where nothing is known.
_LATER = {"climate": 0, PLACE: ""}


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


@dataclass(frozen=True)
class _Head:
    """What an entry's file says beside the rows."""

    name: str
    bytes: Count
    sha256: str
    extra: dict[str, Any]


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
        except FileNotFoundError:
            return None
        try:
            table = read_arrow(content)
            head = validated(parse_json((table.schema.metadata or {})[b"entry"]), _Head)
            rows = _with_later_columns(table.replace_schema_metadata(None))
            check_schema(rows.schema, ())
            check_rows(rows)
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        # Files are removed and renamed by it.
        return cls(name, head.bytes, head.sha256, rows, head.extra) if head.name == name else None

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
        table = self.rows.replace_schema_metadata({"entry": to_json(head, sort_keys=True)})
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


def check_schema(schema: pa.Schema, groups: Sequence[CellGroup]) -> None:
    """Holds columns of an index against those that TerraFM writes; others may be there as well.

    Args:
        schema: of the index.
        groups: of its dataset; none where they are not known.

    Raises:
        ValueError: one is missing, stands twice, or is of another type; names it.
    """
    optional = {PLACE, "climate"}
    for known in index_schema(groups):
        _check_column(schema, known.name, known.type, known.name in optional)


def _check_column(schema: pa.Schema, name: str, kind: pa.DataType, optional: bool) -> None:
    found = schema.get_all_field_indices(name)
    if not found and optional:
        return
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} columns {name}")
    if schema.field(found[0]).type != kind:
        raise ValueError(f"column {name} is {schema.field(found[0]).type}, not {kind}")


def check_rows(rows: pa.Table) -> None:
    """Holds rows of an index, or some of their columns, against what stands in every row.

    Raises:
        ValueError: a value is missing, is text that is no UTF-8, a place below 0, or no place on
            Earth.
    """
    rows.validate(full=True)
    for name in rows.column_names:
        if rows[name].null_count:
            raise ValueError(f"column {name} lacks values")
        place = name in ("latitude", "longitude")
        if place and not pc.all(pc.is_finite(rows[name]), min_count=0).as_py():
            raise ValueError(f"column {name} holds numbers that are not finite")
        if name.endswith((".offset", ".length")) and pc.any(pc.less(rows[name], 0)).as_py():
            raise ValueError(f"column {name} holds numbers below 0")


class TileNotes(TypedDict):
    """What stands as JSON in a row of the index."""

    histogram: dict[int, Count]
    transform: tuple[Finite, Finite, Finite, Finite, Finite, Finite]
    products: dict[str, dict[str, Any]]


def tile_notes(row: Mapping[str, Any], where: str) -> TileNotes:
    """Histogram, transform and products of a row of the index.

    Args:
        row: has them as JSON.
        where: of the index, for the error.

    Raises:
        TerraFMError: one of them is broken.
    """
    stated = {}
    for name in TileNotes.__annotations__:
        try:
            stated[name] = parse_json(row[name])
        except ValueError as error:
            raise _broken(row, where, f"{name}: {error}") from None
    try:
        return validated(stated, TileNotes)
    except ValueError as error:
        raise _broken(row, where, str(error)) from None


def _broken(row: Mapping[str, Any], where: str, why: str) -> TerraFMError:
    return TerraFMError(
        f"{where} is damaged: tile {row.get('tile_id', '')}: {why}: restore it or ingest again"
    )


def _entry_uri(dataset_uri: str, shard_name: str) -> str:
    return join(dataset_uri, "entries", f"{shard_name}.arrow")


def _with_later_columns(rows: pa.Table) -> pa.Table:
    """Rows with the columns that entries of earlier versions do not have: climate, and place."""
    names = [column.name for column in TILE_FIELDS]
    for column in TILE_FIELDS:
        if column.name in _LATER and column.name not in rows.column_names:
            before = names[names.index(column.name) - 1]
            absent = pa.array([_LATER[column.name]] * rows.num_rows, column.type)
            rows = rows.add_column(rows.column_names.index(before) + 1, column, absent)
    return rows

"""stac-geoparquet: items as rows of a Parquet file, their properties as columns beside the others.

https://github.com/stac-utils/stac-geoparquet/blob/main/spec/stac-geoparquet-spec.md: `geometry` is
well-known binary, `assets` a struct with one field for each key that any item has.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from terrafm.errors import UsageError
from terrafm.storage.faults import one_line
from terrafm.storage.geometries import check_polygons
from terrafm.storage.limits import STAC_ITEMS
from terrafm.storage.parquet import TableFile, open_parquet

SUFFIXES = (".parquet", ".geoparquet")
_ITEM = ("id", "collection", "geometry", "bbox", "assets")
# What of an item's properties is looked at.
_PROPERTIES = (
    "datetime", "start_datetime", "updated", "platform", "constellation", "eo:cloud_cover",
    "grid:code", "proj:code", "proj:epsg", "processing:level", "product:type", "s2:mgrs_tile",
    "s2:processing_baseline", "s2:product_id", "s2:product_type", "s2:product_uri",
    "earthsearch:boa_offset_applied",
)  # fmt: skip
_ROWS = 1000


def read_items(uri: str) -> Iterator[list[dict[str, Any]]]:
    """The items of a file, some at a time, in its order.

    A row whose geometry is none keeps its place with None for it.

    Raises:
        UsageError: there is no such file, it is damaged, no stac-geoparquet, or has too many rows.
    """
    try:
        with open_parquet(uri) as file:
            yield from _items(file, uri)
    except (OSError, pa.ArrowException) as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UsageError(f"cannot read {uri}: {reason}") from None


def _items(file: TableFile, uri: str) -> Iterator[list[dict[str, Any]]]:
    names = set(file.schema_arrow.names)
    absent = sorted({"id", "geometry", "assets"} - names)
    if absent:
        raise UsageError(f"{uri} is no stac-geoparquet: it has no column {', '.join(absent)}")
    if file.metadata.num_rows > STAC_ITEMS:
        raise UsageError(
            f"{uri} has {file.metadata.num_rows:,} items, and {STAC_ITEMS:,} are read: write those "
            "of the area and time into a file of their own"
        )
    columns = [name for name in (*_ITEM, *_PROPERTIES) if name in names]
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, columns)
        for start in range(0, table.num_rows, _ROWS):
            yield [_item(row) for row in table.slice(start, _ROWS).to_pylist()]


def _item(row: dict[str, Any]) -> dict[str, Any]:
    box = row.get("bbox")
    if isinstance(box, dict):
        row["bbox"] = [box.get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
    assets = row.get("assets")
    assets = assets if isinstance(assets, dict) else {}
    properties = {name: row.get(name) for name in _PROPERTIES}
    return {
        **{name: row.get(name) for name in _ITEM},
        "type": "Feature",
        "geometry": _geometry(row.get("geometry")),
        "assets": {key: _plain(asset) for key, asset in assets.items() if asset},
        "properties": _plain(properties),
    }


def _geometry(content: Any) -> dict[str, Any] | None:
    if not isinstance(content, bytes):
        return None
    try:
        check_polygons(pa.array([content], pa.binary()))
        shape = shapely.from_wkb(content)
    except (ValueError, shapely.errors.ShapelyError):
        return None
    return dict(shapely.geometry.mapping(shape))


def _plain(value: Any) -> Any:
    """As JSON would have it: no nulls of other rows, times as text, whole numbers as such."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and np.isfinite(value) and value == int(value):
        return int(value)
    return value.isoformat() if hasattr(value, "isoformat") else value

"""Rows of embeddings as the bytes of a GeoParquet file."""

import io
from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio.warp import transform_geom

from terrafm.embed.schema import (
    BBOX_SIDES,
    TIME_PREFIX,
    WINDOW_SIDES,
    embedding_schema,
    geo_metadata,
)
from terrafm.embed.source import Place

_DEGREES = "OGC:CRS84"
_THINNEST = 1e-9


def footprint(place: Place) -> Any:
    """Outline of a tile in longitude and latitude, degrees, as a shapely geometry.

    A Polygon, or a MultiPolygon where it crosses 180 degrees; longitudes are -180 to 180, also of
    grids that count on beyond them.
    """
    a, b, c, d, e, f = place.transform
    height, width = place.shape
    corners = [(0, 0), (0, height), (width, height), (width, 0), (0, 0)]
    ring = [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
    found = transform_geom(place.crs, _DEGREES, {"type": "Polygon", "coordinates": [ring]})
    return _within_180(shapely.geometry.shape(found))


def _within_180(outline: Any) -> Any:
    """An outline in degrees, cut at 180 and moved inside.

    rasterio cuts what comes from a projection; from one grid in degrees to another it leaves all
    longitudes as they are.
    """
    west, _, east, _ = outline.bounds
    if west >= -180 and east <= 180:
        return outline
    turns = range(floor((west + 180) / 360), ceil((east + 180) / 360))
    moved = [shapely.affinity.translate(outline, -360 * turn) for turn in turns]
    parts = [shapely.clip_by_rect(one, -180, -90, 180, 90) for one in moved]
    # What is thinner is a rounding error of an edge at 180.
    return shapely.union_all([part for part in parts if np.ptp(part.bounds[::2]) > _THINNEST])


def part_bytes(
    places: Sequence[Place],
    modalities: Sequence[tuple[str, ...]],
    embeddings: NDArray[np.float32],
    fingerprints: tuple[str, str],
    asked: Sequence[str] = (),
) -> bytes:
    """A part as a whole GeoParquet file.

    Args:
        places: of the N rows.
        modalities: those that each embedding was made of.
        embeddings: (N, D).
        fingerprints: of the model and of the data.
        asked: the modalities that all parts of the folder are of.
    """
    outlines = np.array([footprint(place) for place in places], dtype=object)
    bounds = shapely.bounds(outlines).reshape(-1, 4)
    count, dim = embeddings.shape
    model, data = fingerprints
    schema = embedding_schema(dim, asked)
    times = {
        column: [
            place.times.get(name) if name in used else None
            for place, used in zip(places, modalities, strict=True)
        ]
        for column in schema.names
        if (name := column.removeprefix(TIME_PREFIX)) != column
    }
    columns = {
        "tile_id": [place.tile_id for place in places],
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(embeddings).reshape(-1), pa.float32()), dim
        ),
        "geometry": shapely.to_wkb(outlines).tolist(),
        "bbox": [dict(zip(BBOX_SIDES, map(float, box), strict=True)) for box in bounds],
        "modalities": [list(used) for used in modalities],
        **times,
        "land_cover": [place.land_cover for place in places],
        "land_cover_name": [place.land_cover_name for place in places],
        "grid_cell": [place.grid_cell for place in places],
        "crs": [place.crs for place in places],
        "source": [place.source for place in places],
        "window": [
            None if place.window is None else dict(zip(WINDOW_SIDES, place.window, strict=True))
            for place in places
        ],
        "model_fingerprint": [model] * count,
        "data_fingerprint": [data] * count,
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, schema.field(name).type)
        for name, column in columns.items()
    ]
    return file_bytes(pa.Table.from_arrays(arrays, schema=schema))


def file_bytes(table: pa.Table, emb: str | None = None) -> bytes:
    """Rows as a whole GeoParquet file of one row group.

    Args:
        table: columns as `embedding_schema` has them.
        emb: JSON for the key `emb` of the footer, as the geo-embeddings guide has it.
    """
    outlines = shapely.from_wkb(table["geometry"].to_numpy())
    west, south, east, north = shapely.total_bounds(outlines).tolist()
    names = {3: "Polygon", 6: "MultiPolygon"}
    kinds = sorted({names[kind] for kind in np.unique(shapely.get_type_id(outlines)).tolist()})
    metadata = geo_metadata((west, south, east, north), kinds)
    if emb is not None:
        metadata[b"emb"] = emb.encode()
    table = table.replace_schema_metadata(metadata)
    # Numbers that never repeat: a dictionary of them is only a detour.
    plain = [n for n in table.column_names if n not in ("embedding", "geometry", "bbox")]
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, row_group_size=max(1, table.num_rows), compression="zstd",
        use_dictionary=plain,
    )  # fmt: skip
    return buffer.getvalue()

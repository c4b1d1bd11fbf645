"""What looks like a tile: its nearest neighbours among an archive's embeddings."""

import math
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafm.embed.schema import TIME_PREFIX
from terrafm.errors import UsageError
from terrafm.modalities import FIRST_CHOICE
from terrafm.search.embeddings import Embeddings
from terrafm.search.footprints import distances
from terrafm.search.nearest import Nearest
from terrafm.search.spread import Spread
from terrafm.units import place_name


def find_similar(
    embeddings: Embeddings | str | os.PathLike[str],
    tile: str | None = None,
    point: tuple[float, float] | None = None,
    count: int = 16,
) -> dict[str, Any]:
    """The tiles whose embeddings are nearest to a tile's by cosine, found by looking at all.

    Embeddings of the readout mean+std are standardised over the folder first, as evaluation does.

    Args:
        embeddings: what `terrafm embed` wrote, or its URI.
        tile: id of the tile to compare with, or
        point: (longitude, latitude) in degrees: the tile that covers it, else the nearest one
            if that is no further than a tile is wide.
        count: of neighbours, at least 1; fewer come where the folder has fewer.

    Returns:
        "embeddings" and "data" (URIs), "model", "readout", "tiles" (compared),
        "without_direction" (left out: zero or not finite), "query" and "neighbours", the most
        similar first. Each tile has "tile_id", "longitude", "latitude" (degrees), "times"
        (modality -> ISO 8601 or None), "land_cover", "land_cover_name", "modalities", "source",
        "window"; a neighbour also "rank" (from 1), "similarity" (-1..1) and "distance_km"
        (geodesic, between the centres). Equal similarities are ordered by tile id.

    Raises:
        UsageError: no such folder, tile or place; an unfinished folder; a count below 1; not
            exactly one of `tile` and `point`.
        TerraFMError: a part cannot be read.
    """
    if count < 1:
        raise UsageError(f"the number of neighbours must be at least 1, not {count}")
    if (tile is None) == (point is None):
        raise UsageError("say what to compare with: either a tile or a point")
    if point is not None:
        _check_point(*point)
    folder = embeddings if isinstance(embeddings, Embeddings) else Embeddings(embeddings)
    query = folder.tile_at(*point) if point is not None else str(tile)
    vector = folder.vector(query)
    comparable = _comparable(folder)
    # One more: the query itself is among them, if no copies of it come first.
    nearest = Nearest(comparable(vector), count + 1)
    for ids, vectors in folder.vectors():
        nearest.add(ids, comparable(vectors))
    found = [neighbour for neighbour in nearest.best() if neighbour.tile_id != query][:count]
    notes = [_described(row) for row in folder.notes([query, *(n.tile_id for n in found)])]
    places = np.array([(row["longitude"], row["latitude"]) for row in notes])
    kilometres = distances(places[0, 0], places[0, 1], places)
    return {
        "embeddings": folder.uri,
        "data": folder.manifest.data,
        "model": folder.manifest.model,
        "readout": folder.manifest.readout.value,
        "tiles": nearest.seen - 1,
        "without_direction": nearest.without_direction,
        "query": notes[0],
        "neighbours": [
            {
                "rank": rank,
                "similarity": neighbour.similarity,
                "distance_km": round(float(kilometres[rank]), 3),
                **notes[rank],
            }
            for rank, neighbour in enumerate(found, start=1)
        ],
    }


def render(result: dict[str, Any]) -> RenderableType:
    """The query and its neighbours as a table."""
    query = result["query"]
    facts = (place_of(query), time_of(query), query["land_cover_name"])
    table = Table(box=None, pad_edge=False)
    for name in ("", "cosine", "km"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("tile", "place", "time"):
        table.add_column(name, no_wrap=True, overflow="fold")
    table.add_column("land cover")
    for row in result["neighbours"]:
        table.add_row(
            str(row["rank"]), f"{row['similarity']:.4f}", f"{row['distance_km']:,.1f}",
            row["tile_id"], place_of(row), time_of(row), row["land_cover_name"] or "",
        )  # fmt: skip
    compared = f"among {result['tiles']:,} others in {result['embeddings']}, by {result['model']}"
    if result["readout"] != "cls":
        compared += f", readout {result['readout']}"
    if result["without_direction"]:
        compared += f"; {result['without_direction']:,} left out: zero or not finite"
    return Group(
        Text.assemble((query["tile_id"], "bold"), "  ", "  ".join(filter(None, facts))),
        Text(compared + "\n"),
        table,
    )


def place_of(tile: dict[str, Any]) -> str:
    """A tile's centre as on maps, to a hundred metres."""
    return place_name(tile["latitude"], tile["longitude"], digits=3)


def time_of(tile: dict[str, Any]) -> str:
    """Day of a tile's optical product, else of its radar product; "" where neither is known."""
    times = tile["times"]
    known = [times[name] for name in FIRST_CHOICE if times.get(name)]
    return known[0][:10] if known else ""


def _comparable(folder: Embeddings) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """Makes vectors such that their cosines mean something."""
    if not folder.manifest.needs_standardising:
        return lambda vectors: vectors
    spread = Spread(folder.manifest.dim)
    for _, vectors in folder.vectors():
        spread.add(vectors)
    return spread.standardise


def _described(row: dict[str, Any]) -> dict[str, Any]:
    columns = [name for name in row if name.startswith(TIME_PREFIX)]
    times = {name.removeprefix(TIME_PREFIX): row.pop(name) for name in columns}
    return {**row, "times": {name: _iso(time) for name, time in times.items()}}


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def _check_point(longitude: float, latitude: float) -> None:
    for name, value, limit in (("longitude", longitude, 180), ("latitude", latitude, 90)):
        if not (math.isfinite(value) and abs(value) <= limit):
            raise UsageError(
                f"the point's {name} must lie between -{limit} and {limit} degrees, not {value:g}; "
                "a point is longitude,latitude"
            )

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
from terrafm.search.index import check_possible, find_index
from terrafm.search.indexed import IndexedFolder, NearestTiles
from terrafm.search.nearest import Nearest
from terrafm.search.spread import Spread
from terrafm.units import place_name


def find_similar(
    embeddings: Embeddings | str | os.PathLike[str],
    tile: str | None = None,
    point: tuple[float, float] | None = None,
    count: int = 16,
    index: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The tiles whose embeddings are nearest to a tile's by cosine.

    Embeddings of the readout mean+std are standardised over the folder first, as evaluation does.

    Args:
        embeddings: what `terrafm embed` wrote, or its URI.
        tile: id of the tile to compare with, or
        point: (longitude, latitude) in degrees: the tile that covers it, else the nearest one
            if that is no further than a tile is wide.
        count: of neighbours, at least 1; fewer come where the folder has fewer.
        index: look through the folder's index, which is built where there is none that fits;
            False looks at all embeddings. By default an index that is there is used.
        progress: called with (rows done, rows in all) while an index is built.

    Returns:
        "embeddings" and "data" (URIs), "model", "readout", "tiles" (compared),
        "without_direction" (left out: zero or not finite), "query" and "neighbours", the most
        similar first. Each tile has "tile_id", "longitude", "latitude" (degrees), "times"
        (modality -> ISO 8601 or None), "land_cover", "land_cover_name", "modalities", "source",
        "window"; a neighbour also "rank" (from 1), "similarity" (-1..1) and "distance_km"
        (geodesic, between the centres). Equal similarities are ordered by tile id. "index" is
        None, or what the index says of itself: "recall" (of the 10 nearest, measured when it was
        built), "milliseconds" of a search, "seconds" of building it, and whether it was "built".

    Raises:
        UsageError: no such folder, tile or place; an unfinished folder; a count below 1; not
            exactly one of `tile` and `point`; an index of other embeddings, or none can be built.
        TerraFMError: a part cannot be read.
    """
    if count < 1:
        raise UsageError(f"the number of neighbours must be at least 1, not {count}")
    if (tile is None) == (point is None):
        raise UsageError("say what to compare with: either a tile or a point")
    if point is not None:
        _check_point(*point)
    folder = embeddings if isinstance(embeddings, Embeddings) else Embeddings(embeddings)
    used, built = _index_of(folder, index, progress)
    query = folder.tile_at(*point) if point is not None else str(tile)
    nearest = _by_all(folder, query, count) if used is None else used.nearest(query, count)
    found = nearest.neighbours
    described = folder.notes([query, *(n.tile_id for n in found)], nearest.rows)
    notes = [_described(row) for row in described]
    places = np.array([(row["longitude"], row["latitude"]) for row in notes])
    kilometres = distances(places[0, 0], places[0, 1], places)
    return {
        "embeddings": folder.uri,
        "data": folder.manifest.data,
        "model": folder.manifest.model,
        "readout": folder.manifest.readout.value,
        "tiles": len(folder) - 1,
        "without_direction": nearest.without_direction,
        "index": None if used is None else used.as_dict(built),
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
    if result["index"] is not None:
        compared += f"\n{_about(result['index'])}"
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


def _about(index: dict[str, Any]) -> str:
    share = f"{100 * index['recall']:.1f} %"
    told = f"by its index, which finds {share} of the 10 nearest; --exact looks at all"
    if index["built"]:
        took = f"{index['seconds']:,.0f} s, a search takes {index['milliseconds']:.3g} ms"
        told += f"\nbuilding it took {took}"
    return told


def _index_of(
    folder: Embeddings, index: bool | None, progress: Callable[[int, int], None] | None
) -> tuple[IndexedFolder | None, bool]:
    """The index to look through, if any, and whether it was built now."""
    if index is False:
        return None, False
    if index is True and needs_index(folder):
        # Building brings libraries of its own.
        from terrafm.search.index_build import build_index

        return IndexedFolder(folder, build_index(folder, progress)), True
    record = find_index(folder.uri, folder.manifest)
    return (None if record is None else IndexedFolder(folder, record)), False


def needs_index(folder: Embeddings) -> bool:
    """Whether a folder has no index that can be used: none, one of other embeddings, or damaged.

    Raises:
        UsageError: no folder of its kind can have one, or FAISS is not installed.
    """
    check_possible(folder.uri)
    try:
        record = find_index(folder.uri, folder.manifest)
        if record is not None:
            IndexedFolder(folder, record)
    except UsageError:
        return True
    return record is None


def _by_all(folder: Embeddings, query: str, count: int) -> NearestTiles:
    """The nearest of all, by looking at each."""
    vector = folder.vector(query)
    comparable = _comparable(folder)
    # One more: the query itself is among them, if no copies of it come first.
    nearest = Nearest(comparable(vector), count + 1)
    for ids, vectors in folder.vectors():
        nearest.add(ids, comparable(vectors))
    found = [neighbour for neighbour in nearest.best() if neighbour.tile_id != query][:count]
    return NearestTiles(found, nearest.without_direction, None)


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

"""Grids that cut scenes into cells: the scenes' own MGRS tiles, Major-TOM's, or squares of UTM.

All lie on one lattice of 60 m in each UTM zone, which is that of Sentinel-2's tiles: a cell in a
scene's own zone takes whole pixels of all its bands.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from pyproj import Transformer
from shapely import STRtree
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from terrafm.data.sources.scenes.request import MGRS, SceneRequest
from terrafm.data.sources.scenes.scene import Scene

GSD = 10
LATTICE = 60
"""Metres; the corners of Sentinel-2's tiles are multiples of it from the zone's origin."""
# Major-TOM (Francis and Czerkawski 2024): rows of 180 / 2004 degrees, columns as near 10 km wide
# as divides the circle of latitude; a cell is named after its south-west corner, and its image is
# 340 m wider on every side.
_RADIUS, _CELL, _IMAGE = 6_378_137.0, 10_000.0, 10_680
_ROWS = math.ceil(math.pi * _RADIUS / _CELL)
# Cells of a MGRS tile hold as many tiles along a side as fit into so many pixels: a window that is
# read decodes blocks of 1024.
_USUAL_SIDE = 1100
# Degrees by which the edge of a scene of 250 km may be bent.
_BULGE = 0.05
_SOUTHERN_ORIGIN = 10_000_000


@dataclass(frozen=True)
class GridCell:
    """A square, or rectangle, of ground on a UTM zone's lattice.

    Attributes:
        name: unique in its grid.
        crs: such as "EPSG:32633".
        left, top: corner, metres.
        rows, columns: pixels of 10 m.
    """

    name: str
    crs: str
    left: float
    top: float
    rows: int
    columns: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        return (
            self.left, self.top - self.rows * GSD, self.left + self.columns * GSD, self.top,
        )  # fmt: skip


def cells_over(scene: Scene, request: SceneRequest) -> Iterator[GridCell]:
    """Cells of the grid that may share ground with a scene; of MGRS those of its own tile."""
    if request.grid == MGRS:
        yield from _blocks(scene, request)
    elif request.grid == "utm":
        yield from _squares(scene, request.pixels)
    else:
        yield from _major_tom(scene)


def shares(scene: Scene, cells: list[GridCell]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """(N,) share of each cell's ground that lies in the scene's footprint; one CRS for all."""
    ground = footprint_in(scene, cells[0].crs)
    boxes = shapely.box(*np.array([cell.bounds for cell in cells]).T)
    shapely.prepare(ground)
    found = np.zeros(len(cells))
    touched = shapely.intersects(ground, boxes)
    found[touched] = shapely.area(shapely.intersection(ground, boxes[touched]))
    covered: np.ndarray[tuple[int], np.dtype[np.float64]] = found / shapely.area(boxes)
    return covered


class CellIndex:
    """Finds the cells under scenes that made none, among many."""

    def __init__(self, cells: list[GridCell]) -> None:
        self._cells = cells
        self._tree = STRtree([outline(cell) for cell in cells])

    def near(self, scene: Scene) -> list[GridCell]:
        """Cells that may share ground with a scene, in their order."""
        ground = unwrapped(np.array(scene.footprint))
        # Edges are straight in the scene's own projection, not in degrees.
        near = self._tree.query(ground.buffer(_BULGE), predicate="intersects")
        return [self._cells[number] for number in sorted(near)]


def in_area(cells: list[GridCell], area: BaseGeometry | None) -> list[bool]:
    """Whether each cell shares ground with an area in degrees."""
    if area is None:
        return [True] * len(cells)
    shapely.prepare(area)
    return [bool(shapely.intersects(area, outline(cell))) for cell in cells]


def outline(cell: GridCell) -> BaseGeometry:
    """A cell in degrees."""
    left, bottom, right, top = cell.bounds
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    longitude, latitude = _from(cell.crs).transform(*np.transpose(corners))
    return unwrapped(np.stack([longitude, latitude], 1))


def centre(cell: GridCell) -> tuple[float, float]:
    """Longitude and latitude of a cell's centre."""
    left, bottom, right, top = cell.bounds
    longitude, latitude = _from(cell.crs).transform((left + right) / 2, (bottom + top) / 2)
    return float(longitude), float(latitude)


def unwrapped(corners: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> BaseGeometry:
    """A polygon of (N, 2) degrees; one across the antimeridian is its two parts."""
    longitudes = corners[:, 0]
    if np.ptp(longitudes) <= 180:
        return Polygon(corners)
    east = np.stack([np.where(longitudes < 0, longitudes + 360, longitudes), corners[:, 1]], 1)
    whole = Polygon(east)
    here = whole.intersection(box(0, -90, 180, 90))
    there = whole.intersection(box(180, -90, 360, 90))
    return here.union(shapely.transform(there, lambda points: points - (360, 0)))


def footprint_in(scene: Scene, crs: str) -> BaseGeometry:
    """A scene's footprint in metres of a UTM zone."""
    corners = np.array(scene.footprint)
    x, y = _to(crs).transform(corners[:, 0], corners[:, 1])
    ground = Polygon(np.stack([x, y], 1))
    return ground if ground.is_valid else ground.buffer(0)


def zone_of(longitude: float, latitude: float) -> str:
    """The UTM zone of a place, as "EPSG:32633"."""
    zone = int((longitude + 180) // 6) % 60 + 1
    return f"EPSG:{(32700 if latitude < 0 else 32600) + zone}"


def _origin(crs: str) -> int:
    return _SOUTHERN_ORIGIN if crs.startswith("EPSG:327") else 0


def _blocks(scene: Scene, request: SceneRequest) -> Iterator[GridCell]:
    grid = scene.grid
    if grid is None:
        return
    size = request.tile_size
    most = max(1, _USUAL_SIDE // size)
    down, across = (side * grid.gsd // GSD // size for side in grid.shape)
    left, top = grid.transform[2], grid.transform[5]
    for row in range(0, down, most):
        for column in range(0, across, most):
            yield GridCell(
                f"{scene.tile}_{row:02d}_{column:02d}",
                grid.crs,
                left + column * size * GSD,
                top - row * size * GSD,
                min(most, down - row) * size,
                min(most, across - column) * size,
            )


def _squares(scene: Scene, pixels: int) -> Iterator[GridCell]:
    side = pixels * GSD
    for crs in _zones(scene):
        origin = _origin(crs)
        left, bottom, right, top = footprint_in(scene, crs).bounds
        for row in range(math.floor((bottom - origin) / side), math.ceil((top - origin) / side)):
            for column in range(math.floor(left / side), math.ceil(right / side)):
                x, y = column * side, origin + (row + 1) * side
                cell = GridCell(_square_name(crs, row, column), crs, x, y, pixels, pixels)
                # Ground beside the border of two zones belongs to one of them.
                if _zone_of_centre(cell) == crs:
                    yield cell


def _square_name(crs: str, row: int, column: int) -> str:
    zone = f"{crs[-2:]}{'S' if crs.startswith('EPSG:327') else 'N'}"
    return f"{zone}_{abs(row):04d}{'D' if row < 0 else 'U'}_{column:04d}"


@lru_cache(maxsize=1 << 16)
def _zone_of_centre(cell: GridCell) -> str:
    return zone_of(*centre(cell))


def _zones(scene: Scene) -> list[str]:
    longitudes = [longitude for longitude, _ in scene.footprint]
    latitudes = [latitude for _, latitude in scene.footprint]
    if max(longitudes) - min(longitudes) > 180:
        longitudes = [v + 360 if v < 0 else v for v in longitudes]
    first, last = (int((edge + 180) // 6) for edge in (min(longitudes), max(longitudes)))
    found = {
        zone_of((zone % 60) * 6 - 177, latitude)
        for zone in range(first, last + 1)
        for latitude in (min(latitudes), max(latitudes))
    }
    return sorted(found)


def _major_tom(scene: Scene) -> Iterator[GridCell]:
    longitudes = np.array([longitude for longitude, _ in scene.footprint])
    latitudes = [latitude for _, latitude in scene.footprint]
    if np.ptp(longitudes) > 180:
        longitudes = np.where(longitudes < 0, longitudes + 360, longitudes)
    step = 180 / _ROWS
    # An image is wider than its cell: neighbours reach into the scene.
    first, last = math.floor(min(latitudes) / step) - 1, math.floor(max(latitudes) / step) + 1
    for row in range(first, last + 1):
        columns = _columns(row)
        if columns < 1:
            continue
        west = math.floor(longitudes.min() * columns / 360) - 1
        east = math.floor(longitudes.max() * columns / 360) + 1
        half = columns // 2
        for column in range(west, east + 1):
            # Columns count from Greenwich, both ways.
            yield _major_tom_cell(row, (column + half) % columns - half)


def _columns(row: int) -> int:
    """Cells around the circle of latitude of a row."""
    circumference = 2 * math.pi * _RADIUS * math.cos(math.radians(row * 180 / _ROWS))
    return math.ceil(circumference / _CELL)


@lru_cache(maxsize=1 << 16)
def _major_tom_cell(row: int, column: int) -> GridCell:
    south, west = row * 180 / _ROWS, column * 360 / _columns(row)
    crs = zone_of(west, south)
    x, y = _to(crs).transform(west, south)
    margin = (_IMAGE - _CELL) / 2
    # Major-TOM leaves the corner between pixels; here it is the nearest of the lattice.
    left = round((x - margin) / LATTICE) * LATTICE
    bottom = _origin(crs) + round((y - margin - _origin(crs)) / LATTICE) * LATTICE
    up = f"{row}U" if row >= 0 else f"{-row}D"
    right = f"{column}R" if column >= 0 else f"{-column}L"
    side = _IMAGE // GSD
    return GridCell(f"{up}_{right}", crs, left, bottom + _IMAGE, side, side)


@lru_cache(maxsize=256)
def _to(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


@lru_cache(maxsize=256)
def _from(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)

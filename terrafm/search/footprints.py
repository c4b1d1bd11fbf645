"""Where footprints lie on the globe: centres, distances, what covers a point."""

from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import Geod

from terrafm.storage.faults import one_line
from terrafm.storage.geometries import check_polygons

_EARTH = Geod(ellps="WGS84")
# Wider than this in degrees is no tile, but one that lies on both sides of 180 degrees.
_HALF_TURN, _FULL_TURN = 180.0, 360.0


class Footprints:
    """Polygons in OGC:CRS84, longitude and latitude in degrees.

    Args:
        geometry: (N,) WKB; those that cross 180 degrees are MultiPolygons of both sides.

    Raises:
        ValueError: one is something else, or lies nowhere on Earth.
    """

    def __init__(self, geometry: pa.Array) -> None:
        check_polygons(geometry)
        try:
            shapes = shapely.from_wkb(geometry.to_numpy(zero_copy_only=False))
            shapely.centroid(shapes)
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"a geometry is broken: {one_line(error)}") from None
        # False for NaN as well, as of what is empty.
        if not (np.abs(shapely.bounds(shapes)) <= _FULL_TURN).all():
            raise ValueError("a geometry has no place in longitude and latitude")
        west, _, east, _ = shapely.bounds(shapes).T
        self._crosses = east - west > _HALF_TURN
        for row in np.flatnonzero(self._crosses).tolist():
            shapes[row] = shapely.transform(shapes[row], _eastwards)
        self._shapes = shapes

    def centres(self) -> NDArray[np.float64]:
        """(N, 2) longitude in [-180, 180) and latitude of the centres, degrees."""
        points = shapely.centroid(self._shapes)
        longitude = (shapely.get_x(points) + 180) % 360 - 180
        return np.stack([longitude, shapely.get_y(points)], axis=1)

    def cover(self, longitude: float, latitude: float) -> NDArray[np.bool_]:
        """(N,) whether a point lies in each of them, edges included; degrees."""
        east = longitude + 360 if longitude < 0 else longitude
        x = np.where(self._crosses, east, longitude)
        inside: NDArray[np.bool_] = shapely.intersects_xy(self._shapes, x, latitude)
        return inside

    def diagonals(self) -> NDArray[np.float64]:
        """(N,) length of their bounding boxes' diagonals, km."""
        west, south, east, north = shapely.bounds(self._shapes).T
        metres: NDArray[np.float64] = _EARTH.inv(west, south, east, north)[2]
        return metres / 1000


def distances(
    longitude: float, latitude: float, places: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Geodesic distances on WGS 84, km.

    Args:
        longitude: of the point they are from, degrees.
        latitude: of it.
        places: (N, 2) longitude, latitude, degrees.

    Returns:
        (N,) distances.
    """
    here = np.full((len(places), 2), (longitude, latitude))
    metres: Any = _EARTH.inv(here[:, 0], here[:, 1], places[:, 0], places[:, 1])[2]
    return np.asarray(metres, dtype=np.float64) / 1000


def _eastwards(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Western longitudes as those beyond 180 degrees."""
    return np.where(corners < 0, [360.0, 0.0], 0.0) * [1.0, 0.0] + corners

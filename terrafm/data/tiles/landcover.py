"""Land cover of a footprint: class codes on its grid, histogram, majority class.

The codes come from a raster aligned with the tile, in whatever legend it has, or from ESA
WorldCover 2021 v200 (10 m, 11 classes), which lies in GeoTIFF tiles of 3 x 3 degrees named by
their south-west corner. Land cover is never a label for the loss; it only feeds sampling and
dual centering.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window
from typing_extensions import override

from terrafm.data.sources.base import BadCellError
from terrafm.data.tiles.selection import WATER
from terrafm.errors import STORE_ERRORS, TerraFMError, UsageError
from terrafm.storage import StoreFile, resolve
from terrafm.storage.faults import explain, is_passing, patiently

WORLDCOVER_URI = "s3://esa-worldcover/v200/2021/map"
_ESA_STORE = {
    "endpoint_url": "https://s3.eu-central-1.amazonaws.com",
    "client_kwargs": {"region_name": "eu-central-1"},
}
WORLDCOVER_CLASSES = {
    10: "tree cover",
    20: "shrubland",
    30: "grassland",
    40: "cropland",
    50: "built-up",
    60: "bare or sparse vegetation",
    70: "snow and ice",
    80: "permanent water",
    90: "herbaceous wetland",
    95: "mangroves",
    100: "moss and lichen",
}

_TILE_NAME = re.compile(r"ESA_WorldCover_10m_\d{4}_v\d{3}_([NS]\d{2}[EW]\d{3})_Map\.tif$")
_TILE_DEGREES = 3
_PIXELS_PER_DEGREE = 12000
_TILE_PIXELS = _TILE_DEGREES * _PIXELS_PER_DEGREE


NO_CLASS = -1
"""Code of a pixel whose class a raster does not know."""


def histogram(codes: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Class code -> pixels, by ascending code; pixels of no class are not counted."""
    values, counts = np.unique(codes[codes != NO_CLASS], return_counts=True)
    return {int(code): int(count) for code, count in zip(values, counts, strict=True)}


def majority(counts: dict[int, int]) -> int:
    """The class with most pixels; a tie goes to the lower code."""
    return min(counts, key=lambda code: (-counts[code], code))


def legend(codes: set[int], names: Mapping[int, str] | None = None) -> dict[int, str]:
    """Class code -> name.

    Args:
        codes: those that occur.
        names: of a mapping file, which go before WorldCover's. Without a mapping file WorldCover's
            names hold only where every code is one of its, else a code is "class N".
    """
    if names is None:
        names = WORLDCOVER_CLASSES if codes <= set(WORLDCOVER_CLASSES) else {}
    else:
        names = WORLDCOVER_CLASSES | dict(names)
    return {code: names.get(code, f"class {code}") for code in sorted(codes)}


class WorldCover:
    """ESA WorldCover tiles in a folder or bucket; picklable, opens files only to read.

    A tile that the folder does not have is open sea, as is nodata: WorldCover publishes no tile
    without land. A folder that holds only some of the tiles thus says "sea" for the others.
    """

    def __init__(self, uri: str = WORLDCOVER_URI) -> None:
        """Lists the tiles.

        Raises:
            UsageError: the folder cannot be reached or holds no WorldCover tile.
            StoreFailedError: the store fails for too long.
        """
        self._uri = uri
        filesystem, path = self._open()
        advice = (
            "give a folder of ESA_WorldCover_10m_2021_v200_*_Map.tif with --worldcover, "
            "or land-cover rasters aligned with the tiles"
        )
        try:
            names = patiently(lambda: filesystem.ls(path, detail=False), uri)
        # Object stores report failures (credentials, network) in types of their own libraries.
        except Exception as error:  # noqa: BLE001
            if is_passing(error):
                raise explain(error, "read", uri) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"cannot reach WorldCover at {uri} ({reason}): {advice}") from None
        matches = [(name, _TILE_NAME.search(name)) for name in names]
        self._tiles = {match.group(1): name for name, match in matches if match}
        if not self._tiles:
            raise UsageError(f"no WorldCover tile in {uri}: {advice}")

    def codes(
        self, crs: str, transform: tuple[float, ...], shape: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Nearest-neighbour class codes at the pixel centres of a grid.

        Args:
            crs: of the grid, any that pyproj knows.
            transform: affine coefficients (a, b, c, d, e, f) of the grid, north-up.
            shape: rows and columns.

        Returns:
            (H, W) WorldCover codes.

        Raises:
            BadCellError: a WorldCover tile is damaged.
            StoreRefusedError, StoreFailedError: the store does not answer.
        """
        a, _, c, _, e, f = transform
        x, y = np.meshgrid(c + a * (np.arange(shape[1]) + 0.5), f + e * (np.arange(shape[0]) + 0.5))
        longitude, latitude = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        # Columns count eastward from 180 W and wrap there, rows southward from 90 N: all tiles
        # are pieces of this one grid, so that borders and the antimeridian need no special case.
        columns = np.floor((longitude + 180.0) * _PIXELS_PER_DEGREE).astype(np.int64)
        columns %= 360 * _PIXELS_PER_DEGREE
        rows = np.floor((90.0 - latitude) * _PIXELS_PER_DEGREE).astype(np.int64)
        across = 360 // _TILE_DEGREES
        tile_numbers = rows // _TILE_PIXELS * across + columns // _TILE_PIXELS
        codes = np.full(shape, WATER, dtype=np.uint8)
        for number in np.unique(tile_numbers):
            name = self._tiles.get(_tile_code(*divmod(int(number), across)))
            if name is not None:
                here = tile_numbers == number
                codes[here] = self._sample(
                    name, rows[here] % _TILE_PIXELS, columns[here] % _TILE_PIXELS
                )
        return codes

    def _sample(
        self, name: str, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        top, left = int(rows.min()), int(columns.min())
        window = Window(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
        opener = _Opener(self._open()[0])
        try:
            # No look-out for files beside it: each would be a request.
            with (
                rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
                rasterio.open(name, driver="GTiff", opener=opener) as dataset,
            ):
                if dataset.shape != (_TILE_PIXELS, _TILE_PIXELS):
                    raise BadCellError(name, f"not a WorldCover tile: {dataset.shape} pixels")
                pixels: NDArray[np.uint8] = dataset.read(1, window=window)
        except (RasterioError, OSError) as error:
            if opener.failure is not None:
                raise opener.failure from None
            raise BadCellError(name, f"WorldCover tile cannot be read: {error}") from None
        sampled = pixels[rows - top, columns - left]
        sampled[sampled == 0] = WATER
        return sampled

    def _open(self) -> tuple[Any, str]:
        if self._uri.startswith("s3://esa-worldcover/"):
            # ESA's bucket is public; whatever credentials the machine has are not for it.
            # Nor is the address of a store of one's own.
            esa = fsspec.filesystem("s3", anon=True, **_ESA_STORE)
            return esa, self._uri.removeprefix("s3://")
        return resolve(self._uri)


class _Opener:
    """Opens rasters for GDAL, which forgets why a read failed.

    Attributes:
        failure: of the store, where it was that and not the raster.
    """

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        self.failure: TerraFMError | None = None

    def __call__(self, path: str, mode: str = "rb") -> Any:
        if "file" in self._filesystem.protocol:
            return open(path, mode)
        return _Watched(self._filesystem, path, self)


class _Watched(StoreFile):
    def __init__(self, filesystem: Any, path: str, opener: _Opener) -> None:
        self._opener = opener
        with self._noting():
            super().__init__(filesystem, path, path)

    @override
    def read(self, size: int | None = -1) -> bytes:
        with self._noting():
            return super().read(size)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except STORE_ERRORS as error:
            self._opener.failure = error
            raise OSError(str(error)) from None


def _tile_code(tile_row: int, tile_column: int) -> str:
    south = 90 - _TILE_DEGREES * (tile_row + 1)
    west = _TILE_DEGREES * tile_column - 180
    return f"{'N' if south >= 0 else 'S'}{abs(south):02d}{'E' if west >= 0 else 'W'}{abs(west):03d}"

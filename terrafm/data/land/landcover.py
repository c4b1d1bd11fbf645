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
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window
from typing_extensions import override

from terrafm.data.archive import BadCellError
from terrafm.data.land.land_tiles import PUBLISHED_TILES, SOUTHERNMOST, may_hold_land
from terrafm.data.land.selection import NO_CLASS, WATER
from terrafm.data.rasters.opening import check_window, open_raster_through
from terrafm.errors import STORE_ERRORS, TerraFMError, UsageError
from terrafm.storage import StoreFile, resolve
from terrafm.storage.clutter import is_clutter
from terrafm.storage.faults import explain, is_passing, patiently
from terrafm.storage.files import S3_OPTIONS
from terrafm.storage.local import open_regular

WORLDCOVER_URI = "s3://esa-worldcover/v200/2021/map"
_ESA_BUCKET = "s3://esa-worldcover/"
_ESA_STORE = {
    "endpoint_url": "https://s3.eu-central-1.amazonaws.com",
    "client_kwargs": {"region_name": "eu-central-1"},
}
# Nobody asked for this bucket: a machine without the internet is told so soon.
_ESA_PATIENCE_SECONDS = 10.0
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

_TILE_NAME = re.compile(r"ESA_WorldCover_10m_\d{4}_v\d{3}_([NS]\d{2}[EW]\d{3})_Map\.tiff?$", re.I)
_TILE_DEGREES = 3
_PIXELS_PER_DEGREE = 12000
_TILE_PIXELS = _TILE_DEGREES * _PIXELS_PER_DEGREE
_ACROSS = 360 // _TILE_DEGREES


def histogram(codes: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Class code -> pixels, by ascending code; pixels without a class are left out."""
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

    ESA publishes no tile without land, so a tile that is in ESA's bucket, or in a folder with as
    many tiles, is land, and any other is open sea, as is nodata. Of a folder with fewer tiles, an
    absent one is sea only where no land is near (`terrafm.data.land.land_tiles`); elsewhere its
    land cover is not known, and neither is that of Antarctica, which has no tile.

    Attributes:
        uri: of the folder.
    """

    def __init__(self, uri: str = WORLDCOVER_URI) -> None:
        """Lists the tiles.

        Raises:
            UsageError: the folder cannot be reached or holds no WorldCover tile.
            StoreFailedError: the store fails for too long.
        """
        self.uri = uri
        filesystem, path = self._open()
        advice = (
            "give a folder of ESA_WorldCover_10m_2021_v200_*_Map.tif with --worldcover, "
            "or land-cover rasters aligned with the tiles"
        )
        esa = uri.startswith(_ESA_BUCKET)
        seconds = _ESA_PATIENCE_SECONDS if esa else None
        try:
            names = patiently(lambda: filesystem.ls(path, detail=False), uri, seconds)
        # Object stores report failures (credentials, network) in types of their own libraries.
        except Exception as error:  # noqa: BLE001
            if is_passing(error) and not esa:
                raise explain(error, "read", uri) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"cannot reach WorldCover at {uri} ({reason}): {advice}") from None
        names = [name for name in names if not is_clutter(name.rpartition("/")[2])]
        # In the order of their years, so that of two maps of one place the newer stays.
        matches = [(name, _TILE_NAME.search(name)) for name in sorted(names)]
        self._tiles = {match.group(1).upper(): name for name, match in matches if match}
        if not self._tiles:
            raise UsageError(f"no WorldCover tile in {uri}: {advice}")
        self._is_whole = uri == WORLDCOVER_URI or len(self._tiles) >= PUBLISHED_TILES

    def codes(
        self, crs: str, transform: tuple[float, ...], shape: tuple[int, int]
    ) -> NDArray[np.int16]:
        """Nearest-neighbour class codes at the pixel centres of a grid.

        Args:
            crs: of the grid, any that pyproj knows.
            transform: affine coefficients (a, b, c, d, e, f) of the grid, north-up.
            shape: rows and columns.

        Returns:
            (H, W) WorldCover codes; `NO_CLASS` where a tile lacks.

        Raises:
            BadCellError: a WorldCover tile is damaged.
            StoreRefusedError, StoreFailedError: the store does not answer.
        """
        rows, columns = _global_pixels(*_degrees(crs, transform, shape))
        tile_numbers = _tile_numbers(rows, columns)
        codes = np.full(shape, WATER, dtype=np.int16)
        for number in np.unique(tile_numbers).tolist():
            here = tile_numbers == number
            name = self._tiles.get(_tile_code(number))
            if name is not None:
                codes[here] = self._sample(
                    name, rows[here] % _TILE_PIXELS, columns[here] % _TILE_PIXELS
                )
            elif self._lacks(number):
                codes[here] = NO_CLASS
        return codes

    def lacking(
        self, crs: str, transform: tuple[float, ...], shape: tuple[int, int]
    ) -> tuple[str, ...]:
        """Names of the tiles under a grid that are not at hand though land may lie there."""
        return self.lacking_at(*_degrees(crs, transform, shape))

    def lacking_at(
        self, longitude: NDArray[np.float64], latitude: NDArray[np.float64]
    ) -> tuple[str, ...]:
        """As `lacking`, at places in degrees, such as ("N45E015",)."""
        numbers = np.unique(_tile_numbers(*_global_pixels(longitude, latitude))).tolist()
        return tuple(sorted(_tile_code(number) for number in numbers if self._lacks(number)))

    def _lacks(self, number: int) -> bool:
        south, west = _corner(number)
        if _tile_code(number) in self._tiles or (self._is_whole and south >= SOUTHERNMOST):
            return False
        return may_hold_land(south, west)

    def _sample(
        self, name: str, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        top, left = int(rows.min()), int(columns.min())
        window = Window(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
        opener = _Opener(self._open()[0], name)
        try:
            # Blocks of its tiles have a megapixel.
            with open_raster_through(name, opener, stored=lambda: 0) as dataset:
                if dataset.shape != (_TILE_PIXELS, _TILE_PIXELS):
                    raise BadCellError(name, f"not a WorldCover tile: {dataset.shape} pixels")
                check_window(dataset, window)
                pixels: NDArray[np.uint8] = dataset.read(1, window=window)
        except (RasterioError, OSError, ValueError) as error:
            if opener.failure is not None:
                raise opener.failure from None
            raise BadCellError(name, f"WorldCover tile cannot be read: {error}") from None
        sampled = pixels[rows - top, columns - left]
        sampled[sampled == 0] = WATER
        return sampled

    def _open(self) -> tuple[Any, str]:
        if self.uri.startswith(_ESA_BUCKET):
            # ESA's bucket is public; whatever credentials the machine has are not for it.
            # Nor is the address of a store of one's own.
            esa = fsspec.filesystem("s3", anon=True, **_ESA_STORE, **S3_OPTIONS)
            return esa, self.uri.removeprefix("s3://")
        return resolve(self.uri)


class _Opener:
    """Opens a raster for GDAL, which forgets why a read failed.

    Attributes:
        failure: of the store, where it was that and not the raster.
    """

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self.failure: TerraFMError | None = None

    def __call__(self) -> Any:
        if "file" in self._filesystem.protocol:
            return open_regular(self._path)
        return _Watched(self._filesystem, self._path, self)


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


def _degrees(
    crs: str, transform: tuple[float, ...], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(H, W) longitude and latitude of the pixel centres of a grid."""
    a, _, c, _, e, f = transform
    x, y = np.meshgrid(c + a * (np.arange(shape[1]) + 0.5), f + e * (np.arange(shape[0]) + 0.5))
    longitude, latitude = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return longitude, latitude


def _global_pixels(
    longitude: NDArray[np.float64], latitude: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows southward from 90 N and columns eastward from 180 W, where they wrap.

    All tiles are pieces of this one grid, so that borders and the antimeridian need no special
    case.
    """
    columns = np.floor((longitude + 180.0) * _PIXELS_PER_DEGREE).astype(np.int64)
    columns %= 360 * _PIXELS_PER_DEGREE
    rows = np.floor((90.0 - latitude) * _PIXELS_PER_DEGREE).astype(np.int64)
    # The South Pole lies on the lower edge of the last row.
    return np.minimum(rows, 180 * _PIXELS_PER_DEGREE - 1), columns


def _tile_numbers(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows // _TILE_PIXELS * _ACROSS + columns // _TILE_PIXELS


def _corner(number: int) -> tuple[int, int]:
    """South-west corner of a tile, degrees."""
    row, column = divmod(number, _ACROSS)
    return 90 - _TILE_DEGREES * (row + 1), _TILE_DEGREES * column - 180


def _tile_code(number: int) -> str:
    south, west = _corner(number)
    return f"{'N' if south >= 0 else 'S'}{abs(south):02d}{'E' if west >= 0 else 'W'}{abs(west):03d}"

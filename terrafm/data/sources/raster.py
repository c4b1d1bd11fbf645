"""GeoTIFF bytes to arrays, and the grid they lie on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.geotiff import Header, Stored, read_stored
from terrafm.data.rasters.opening import check_whole, open_mask, open_raster_bytes
from terrafm.data.sources.offsets import claimed_offset
from terrafm.errors import PixelError
from terrafm.storage import read_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie.

    Attributes:
        crs: authority string, such as "EPSG:32633"; projected, in metres.
        transform: affine coefficients (a, b, c, d, e, f); north-up.
        shape: rows and columns.
        gsd: side of a pixel, whole metres.
    """

    crs: str
    transform: Affine
    shape: tuple[int, int]
    gsd: int

    def difference(self, other: "Grid") -> str | None:
        """What tells two grids apart, in words; None where the footprints coincide.

        Grids of another GSD match when they cover the same ground. The corner may differ by a
        hundredth of the finer pixel, which is rounding.
        """
        if self.crs != other.crs:
            return f"coordinate system {self.crs}, not {other.crs}"
        tolerance = 0.01 * min(self.gsd, other.gsd)
        for axis, mine, yours in (
            ("x", self.transform[2], other.transform[2]),
            ("y", self.transform[5], other.transform[5]),
        ):
            if abs(mine - yours) > tolerance:
                return f"corner {axis} {mine:.2f} m, not {yours:.2f} m"
        if any(a * self.gsd != b * other.gsd for a, b in zip(self.shape, other.shape, strict=True)):
            return f"{self}, not {other}"
        return None

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{rows} x {columns} px at {self.gsd} m"


@dataclass(frozen=True)
class Raster:
    """A GeoTIFF in memory.

    Attributes:
        stored: its pixels, and what it says of them.
        grid: where they lie.
        tags: the file's metadata.
        where: the file, for messages.
    """

    stored: Stored
    grid: Grid
    tags: dict[str, str]
    where: str

    @property
    def pixels(self) -> NDArray[Any]:
        """(C, H, W), as stored in the file, without alpha."""
        return self.stored.pixels

    def measured(self, modality: str) -> NDArray[Any]:
        """(C, H, W) of a sensor, see `Stored.measured`.

        Raises:
            BadCellError: the file contradicts itself.
        """
        return _measured(self.stored, modality, self.where)

    def claim(self) -> tuple[int, str] | None:
        """The offset that the file's tags state, see `claimed_offset`."""
        header = self.stored.header
        return claimed_offset(header.tags, any(header.offsets))


@dataclass(frozen=True)
class Patch:
    """A GeoTIFF of one band whose georeference is left to its source to judge.

    Attributes:
        stored: (1, H, W) pixels, and what the file says of them.
        crs: authority string, of any kind.
        transform: affine coefficients (a, b, c, d, e, f), in units of the crs.
        where: the file, for messages.
    """

    stored: Stored
    crs: str
    transform: Affine
    where: str

    @property
    def pixels(self) -> NDArray[Any]:
        """(H, W), as stored in the file."""
        band: NDArray[Any] = self.stored.pixels[0]
        return band

    def measured(self, modality: str) -> NDArray[Any]:
        """(H, W) of a sensor, see `Stored.measured`.

        Raises:
            BadCellError: the file contradicts itself.
        """
        band: NDArray[Any] = _measured(self.stored, modality, self.where)[0]
        return band

    def claim(self) -> tuple[int, str] | None:
        """The offset that the file's tags state, see `claimed_offset`."""
        header = self.stored.header
        return claimed_offset(header.tags, any(header.offsets))


def read_patch(uri: str) -> Patch:
    """Reads a GeoTIFF of one band, whatever its grid.

    Raises:
        BadCellError: the file is missing, damaged, cut short, too large for its bytes or for the
            memory, has several bands or no georeference.
    """
    content = _fetch(uri)
    with _opened(content, uri) as dataset:
        header = Header.of(dataset)
        if header.count != 1:
            raise BadCellError(uri, f"{header.count} bands, not 1")
        if why := why_no_place(dataset):
            raise BadCellError(uri, why)
        _check_size(dataset, len(content), uri)
        a, b, c, d, e, f = (float(value) for value in tuple(dataset.transform)[:6])
        stored = _read(dataset, header, uri)
        return Patch(stored, dataset.crs.to_string(), (a, b, c, d, e, f), uri)


def read_grid(uri: str) -> Grid:
    """The grid of a GeoTIFF without its pixels.

    Raises:
        BadCellError: the file is missing, is no GeoTIFF, or its grid cannot be used.
    """
    with _opened(_fetch(uri), uri) as dataset:
        return _grid(dataset, uri)


def read_geotiff(uri: str) -> Raster:
    """Reads a GeoTIFF from any file system; on a disk with the mask beside it.

    Raises:
        BadCellError: as `decode_geotiff`, or the file is missing, or the mask is none of it.
    """
    return _decode(_fetch(uri), uri, uri)


def decode_geotiff(content: bytes, where: str) -> Raster:
    """Decodes the bytes of a GeoTIFF.

    Args:
        content: the whole file.
        where: what an error names.

    Raises:
        BadCellError: the bytes are damaged, cut short, claim more pixels than they can hold or
            than fit into memory, or the grid cannot be used.
    """
    return _decode(content, where, None)


def why_no_place(image: DatasetReader) -> str | None:
    """What an image lacks to lie anywhere on the globe, and what to do; None where it does."""
    if image.crs is not None and not image.transform.is_identity:
        return None
    warp = "lay it on a grid first with gdalwarp {} -t_srs EPSG:CODE"
    if image.gcps[0]:
        return "has only ground control points, as a Sentinel-1 GRD has: " + warp.format("-tps")
    if image.rpcs is not None:
        return "has only rational polynomial coefficients: " + warp.format("-rpc")
    if image.crs is None and image.transform.is_identity:
        return (
            "has no CRS, so that its place is not known, and no transform: give it both with "
            "gdal_edit.py -a_srs EPSG:CODE -a_ullr LEFT TOP RIGHT BOTTOM"
        )
    if image.crs is None:
        return (
            "has no CRS, so that its place is not known: give it one with gdal_edit.py -a_srs "
            "EPSG:CODE"
        )
    return (
        "has a CRS but no place, its transform is none: give it one with gdal_edit.py -a_ullr "
        "LEFT TOP RIGHT BOTTOM"
    )


def reference_grid(grids: Mapping[str, Grid]) -> tuple[str, dict[str, str]]:
    """The grid that most rasters of a cell share; a tie goes to the first named.

    Returns:
        The name of a raster on that grid, and for each raster that does not match it, why.
    """
    matches = {
        name: sum(grid.difference(other) is None for other in grids.values())
        for name, grid in grids.items()
    }
    reference = max(matches, key=lambda name: matches[name])
    differences = {n: g.difference(grids[reference]) for n, g in grids.items()}
    return reference, {
        name: f"grid does not match that of {reference}: {why}"
        for name, why in differences.items()
        if why is not None
    }


def _decode(content: bytes, where: str, uri: str | None) -> Raster:
    with _opened(content, where) as dataset:
        _check_size(dataset, len(content), where)
        stored = _read(dataset, Header.of(dataset), uri)
        return Raster(stored, _grid(dataset, where), dataset.tags(), where)


def _read(dataset: DatasetReader, header: Header, uri: str | None) -> Stored:
    mask = open_mask(uri, dataset) if uri else None
    try:
        return read_stored(dataset, header, mask=mask)
    finally:
        if mask is not None:
            mask.close()


def _measured(stored: Stored, modality: str, where: str) -> NDArray[Any]:
    try:
        return stored.measured(modality, where)
    except PixelError as fault:
        raise BadCellError(fault.where, fault.why) from None


@contextmanager
def _opened(content: bytes, where: str) -> Iterator[Any]:
    """An open GeoTIFF; everything GDAL finds wrong with it leaves as a BadCellError."""
    if not content:
        raise BadCellError(where, "the file is empty")
    try:
        with open_raster_bytes(content) as dataset:
            yield dataset
    except RasterioError:
        raise BadCellError(where, "not a readable GeoTIFF (damaged or cut short)") from None
    except MemoryError:
        raise BadCellError(where, "its pixels do not fit into memory") from None
    except ValueError as error:
        raise BadCellError(where, str(error)) from None


def _check_size(dataset: DatasetReader, stored: int, where: str) -> None:
    try:
        check_whole(dataset, lambda: stored)
    except ValueError as error:
        raise BadCellError(where, str(error)) from None


def _fetch(uri: str) -> bytes:
    try:
        return read_bytes(uri, WHOLE_FILE_BYTES)
    except OSError as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else str(error)
        raise BadCellError(uri, reason) from None


def _grid(dataset: Any, where: str) -> Grid:
    if why := why_no_place(dataset):
        raise BadCellError(where, why)
    crs = dataset.crs
    if not crs.is_projected or crs.linear_units_factor[1] != 1.0:
        raise BadCellError(
            where, f"the coordinate system {crs.to_string()[:40]} is not projected in metres"
        )
    a, b, c, d, e, f = (float(value) for value in tuple(dataset.transform)[:6])
    if not np.isfinite((a, b, c, d, e, f)).all():
        raise BadCellError(where, "its transform has numbers that are not finite")
    if b or d:
        raise BadCellError(
            where,
            "the grid is rotated: lay it north-up first with gdalwarp "
            f"-t_srs {crs.to_string()[:40]} -tr {np.hypot(a, d):g} {np.hypot(b, e):g}",
        )
    gsd = round(a)
    if gsd < 1 or abs(a - gsd) > 1e-6 or abs(e + gsd) > 1e-6:
        raise BadCellError(
            where, f"pixels must be north-up squares of whole metres, not {a:g} x {e:g}"
        )
    return Grid(crs.to_string(), (a, b, c, d, e, f), (dataset.height, dataset.width), gsd)

"""One date of one sensor in a group of Zarr, as TerraMesh and SSL4EO-S12 v1.1 have them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError

from terrafm.data.archive import BadCellError
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.bands import CIRRUS, canonical
from terrafm.data.sources.raster import Grid
from terrafm.modalities import MODALITIES
from terrafm.storage.records import shortened
from terrafm.storage.zarr_arrays import BadZarrError
from terrafm.storage.zarr_zip import ZarrZip
from terrafm.storage.zip_members import BadZipError

SAMPLE_GSD = 10
# Of SEnSeI v2's classes (land, water, snow, thin cloud, thick cloud, shadow, no data).
_CLOUDS, _NO_DATA = (3, 4), 6
_FAR_METRES = 2000.0
_UNITS = re.compile(r"(\w+) since (.+)")
_SECONDS = {"nanoseconds": 1e-9, "microseconds": 1e-6, "milliseconds": 1e-3, "seconds": 1.0,
            "minutes": 60.0, "hours": 3600.0, "days": 86400.0}  # fmt: skip
_LAST_YEARS = 253_402_300_799
_ELLIPSOID = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Sample:
    """Pixels of one date and sensor.

    Attributes:
        bands: band -> (H, W), as stored; B10 of Level-1C as well.
        grid: where they lie.
        time: ISO 8601, or "".
        cloud_cover: percent of thin and thick cloud in what was classified, or None.
        product: name of the file of Sentinel that it was cut from, or "".
    """

    bands: dict[str, NDArray[Any]]
    grid: Grid
    time: str
    cloud_cover: float | None
    product: str


def read_sample(group: ZarrZip, row: int | None, time: int, modality: str, where: str) -> Sample:
    """One date of a group.

    Args:
        group: of one place, or of many.
        row: number of the place; None in a group of one.
        time: number of the date.
        modality: whose bands they are.
        where: for messages.

    Raises:
        BadCellError: it cannot be read, or contradicts itself.
    """
    try:
        return _read(group, () if row is None else (row,), time, modality, where)
    except (BadZipError, BadZarrError) as error:
        raise BadCellError(where, str(error)) from None
    except (ValueError, IndexError, OverflowError, OSError, MemoryError) as error:
        raise BadCellError(where, f"not a sample as published: {error}") from None


def read_classes(group: ZarrZip, where: str, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """(H, W) codes of land cover.

    Raises:
        BadCellError: they cannot be read, or are of another size.
    """
    try:
        pixels = group.read("bands")
    except (BadZipError, BadZarrError, OSError, MemoryError) as error:
        raise BadCellError(where, str(error)) from None
    pixels = pixels.reshape(pixels.shape[-2:]) if pixels.size == np.prod(shape) else pixels
    if pixels.shape != shape or pixels.dtype.kind not in "iu":
        raise BadCellError(where, f"land cover of {pixels.shape} {pixels.dtype}, not {shape}")
    return pixels


def _read(group: ZarrZip, row: tuple[int, ...], time: int, modality: str, where: str) -> Sample:
    many = bool(row)
    pixels = group.read("bands", *row, time)
    if pixels.ndim != 3:
        raise BadCellError(where, f"bands have the shape {group.info('bands').shape}")
    labels = [str(label) for label in group.read("band").tolist()]
    names = [canonical(label, modality) for label in labels]
    known = {*MODALITIES[modality].bands, CIRRUS}
    if len(names) != len(pixels) or len(set(names)) < len(names) or not set(names) <= known:
        shown = ", ".join(shortened(label) for label in labels[:16])
        raise BadCellError(where, f"its {len(pixels)} bands of {modality} are labelled {shown}")
    if pixels.dtype == np.float16:
        # Radar in dB; what is made of it needs more than 11 bits.
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind not in "iuf":
        raise BadCellError(where, f"its pixels are {pixels.dtype}")
    grid = _grid(group, row, pixels.shape[1:], where)
    clouds = None
    if "cloud_mask" in group:
        # Of a sample of one date the mask may have no dates either.
        dated = len(group.info("cloud_mask").shape) > len(row) + 2
        mask = group.read("cloud_mask", *row, *((time,) if dated else ()))
        clouds = _cloud_cover(mask, pixels.shape[1:], where)
    product = ""
    if "file_id" in group:
        files = group.read("file_id", *row)
        product = str(files if files.ndim == 0 else files[time])
    return Sample(
        bands={str(name): band for name, band in zip(names, pixels, strict=True)},
        grid=grid,
        time=_time(group, "time_" if many else "time", row, time),
        cloud_cover=clouds,
        product=product,
    )


def _grid(group: ZarrZip, row: tuple[int, ...], shape: tuple[int, ...], where: str) -> Grid:
    x, y = (group.read(f"{axis}_" if row else axis, *row) for axis in "xy")
    if x.shape != shape[1:] or y.shape != shape[:1] or x.dtype.kind not in "iuf":
        raise BadCellError(where, f"{x.shape} x {y.shape} coordinates of {shape} pixels")
    steps = np.concatenate([np.diff(x.astype(np.float64)), -np.diff(y.astype(np.float64))])
    if not len(steps) or not np.allclose(steps, SAMPLE_GSD, rtol=0, atol=1e-3):
        raise BadCellError(where, "its pixels do not lie 10 m from each other, north up")
    epsg = int(group.read("crs", *row).reshape(()))
    if not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise BadCellError(where, f"its coordinate system EPSG:{epsg} is not a zone of UTM")
    left, top = float(x[0]) - SAMPLE_GSD / 2, float(y[0]) + SAMPLE_GSD / 2
    transform = (float(SAMPLE_GSD), 0.0, left, 0.0, -float(SAMPLE_GSD), top)
    grid = Grid(f"EPSG:{epsg}", transform, (shape[0], shape[1]), SAMPLE_GSD)
    _check_centre(group, row, grid, where)
    return grid


def _check_centre(group: ZarrZip, row: tuple[int, ...], grid: Grid, where: str) -> None:
    """Holds the coordinates against the centre, which the sample states as well."""
    if "center_lon" not in group or "center_lat" not in group:
        return
    longitude, latitude = (
        float(group.read(name, *row).reshape(-1)[0]) for name in ("center_lon", "center_lat")
    )
    rows, columns = grid.shape
    east = grid.transform[2] + SAMPLE_GSD * columns / 2
    north = grid.transform[5] - SAMPLE_GSD * rows / 2
    try:
        to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
        own = to_degrees.transform(east, north, errcheck=True)
    except ProjError:
        raise BadCellError(where, f"its coordinates lie nowhere in {grid.crs}") from None
    apart = _ELLIPSOID.inv(longitude, latitude, *own)[2]
    if not apart <= _FAR_METRES:
        raise BadCellError(where, f"its pixels lie {apart / 1000:,.0f} km from the centre that it "
                           "states")  # fmt: skip


def _cloud_cover(mask: NDArray[Any], shape: tuple[int, ...], where: str) -> float | None:
    if mask.shape != shape:
        raise BadCellError(where, f"a cloud mask of {mask.shape} pixels, not {shape}")
    measured = mask != _NO_DATA
    if not measured.any():
        return None
    return round(100.0 * float(np.isin(mask[measured], _CLOUDS).mean()), 4)


def _time(group: ZarrZip, name: str, row: tuple[int, ...], time: int) -> str:
    """Of a date, by the unit that the array states; nanoseconds since 1970 where it states none."""
    if name not in group:
        return ""
    value = group.read(name, *row).reshape(-1)[time]
    if value.dtype.kind == "M":
        moment = parse_time(str(value.astype("datetime64[s]")))
        return moment.isoformat() if moment else ""
    found = _UNITS.fullmatch(str(group.info(name).attributes.get("units", "")).strip())
    unit, since = found.groups() if found else ("nanoseconds", "1970-01-01")
    origin = parse_time(since.strip())
    if unit not in _SECONDS or origin is None or value.dtype.kind not in "iuf":
        return ""
    seconds = origin.timestamp() + float(value) * _SECONDS[unit]
    # Samples without a date have 0.
    if not 0 < seconds < _LAST_YEARS or not value:
        return ""
    return datetime.fromtimestamp(round(seconds), UTC).isoformat()

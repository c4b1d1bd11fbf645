"""A folder per class, GeoTIFFs in it: EuroSAT-MS, EuroSAT-SAR, and one's own images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import rasterio.errors
from numpy.typing import NDArray
from rasterio.io import DatasetReader, MemoryFile

from terrafm.errors import UsageError
from terrafm.eval.band_names import BandMatch, canonical, match_bands
from terrafm.eval.labelled import Grid, Image, files_fingerprint, measured_statistics
from terrafm.modalities import MODALITIES
from terrafm.storage import join, list_names, read_bytes

# Sentinel-2 L1C as EuroSAT's authors stored it: B8A comes last.
EUROSAT_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
)  # fmt: skip
_IMAGE_SUFFIXES = (".tif", ".tiff")
# Reflectance above this is a digital number that was made a float.
_HIGHEST_REFLECTANCE = 20.0
_GSD_TOLERANCE = 0.05


@dataclass(frozen=True)
class _Raster:
    """One file, read."""

    pixels: NDArray[np.generic]
    names: tuple[str, ...]  # empty where the file names no bands
    nodata: float | None
    unit: str  # of its coordinates: "metres", "degrees", or "" without a CRS
    gsd: float


class ClassFolder:
    """A folder per class with GeoTIFFs of one sensor.

    Bands are known by `bands`, or by the files' own band descriptions, or, for 13 bands without
    names, by EuroSAT's order, in which B8A is last. Sentinel-2 integers are digital numbers:
    reflectance = number / 10000, 0 is nodata, no offset is removed; floats are reflectance.
    Sentinel-1 is dB.
    """

    def __init__(
        self, uri: str, *, modality: str | None = None, bands: Sequence[str] | None = None
    ) -> None:
        """Lists the images, in the order of class and file name, and reads the first.

        Args:
            uri: the folder.
            modality: of the images; by default what the bands say.
            bands: names of the files' bands, in their order.

        Raises:
            UsageError: no class folder holds a GeoTIFF, or its bands cannot be told.
        """
        self.uri = uri
        self.files: list[str] = []
        labels: list[int] = []
        classes: list[str] = []
        for name in list_names(uri):
            images = _images_of(uri, name)
            if images:
                labels += [len(classes)] * len(images)
                classes.append(name)
                self.files += images
        if not self.files:
            raise UsageError(
                f"no images under {uri}: expected a folder per class with GeoTIFFs, as EuroSAT-MS "
                "has them, or a dataset made by terrafm ingest"
            )
        self.names: Sequence[str] = [file.removeprefix(uri).lstrip("/") for file in self.files]
        self.labels = np.array(labels, np.int64)
        self.classes = tuple(classes)
        self.groups = np.arange(len(labels), dtype=np.int64)
        self.splits: NDArray[np.str_] | None = None
        self._first = _read(self.files[0])
        self._match = _match(self._first, modality, bands, self.files[0])
        self.modalities: tuple[str, ...] = (self._match.modality,)
        self.bands = {self._match.modality: self._match.describe()}

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, and of how the bands were matched."""
        return f"{files_fingerprint(self.uri, self.files)}:{self._match.describe()}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image, all bands on one grid; empty without the set's modality in `modalities`."""
        modality = self._match.modality
        if modality not in modalities:
            return {}
        file = self.files[row]
        raster = self._first if row == 0 else _read(file)
        self._check(raster, file)
        pixels = _physical(raster, modality, file)[list(self._match.take)]
        return {modality: [Grid(self._match.channels, pixels)]}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over all images in one pass."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return measured_statistics(self, range(len(self.files)))

    def _check(self, raster: _Raster, file: str) -> None:
        first = self._first
        if len(raster.pixels) != len(first.pixels):
            raise UsageError(
                f"image {file} has {len(raster.pixels)} bands, {self.files[0]} has "
                f"{len(first.pixels)}"
            )
        if raster.names != first.names:
            raise UsageError(f"image {file} names its bands otherwise than {self.files[0]}")
        if raster.unit != first.unit:
            raise UsageError(
                f"image {file} lies in {_crs_text(raster.unit)}, {self.files[0]} in "
                f"{_crs_text(first.unit)}: reproject one of them"
            )
        if abs(raster.gsd - first.gsd) > _GSD_TOLERANCE * first.gsd:
            raise UsageError(
                f"image {file} has pixels of {raster.gsd:g} {raster.unit}, {self.files[0]} of "
                f"{first.gsd:g}: resample one of them"
            )


def _images_of(uri: str, name: str) -> list[str]:
    if name.startswith(".") or name.lower().endswith(_IMAGE_SUFFIXES):
        return []
    folder = join(uri, name)
    return [
        join(folder, file)
        for file in list_names(folder)
        if file.lower().endswith(_IMAGE_SUFFIXES) and not file.startswith(".")
    ]


def _read(file: str) -> _Raster:
    try:
        with MemoryFile(read_bytes(file)) as memory, memory.open() as image:
            pixels: NDArray[np.generic] = image.read()
            names = tuple(name or "" for name in image.descriptions)
            unit, gsd = _spacing(image)
            nodata = image.nodata
    except (rasterio.errors.RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {file}: {error}") from None
    return _Raster(pixels, names if any(names) else (), nodata, unit, gsd)


def _spacing(image: DatasetReader) -> tuple[str, float]:
    if image.crs is None:
        return "", 1.0
    return ("degrees" if image.crs.is_geographic else "metres"), float(abs(image.res[0]))


def _crs_text(unit: str) -> str:
    return f"a CRS in {unit}" if unit else "no CRS"


def _match(
    first: _Raster, modality: str | None, bands: Sequence[str] | None, file: str
) -> BandMatch:
    count = len(first.pixels)
    if modality is not None and modality not in MODALITIES:
        raise UsageError(f"unknown modality {modality!r}: one of {', '.join(MODALITIES)}")
    if bands is not None:
        if len(bands) != count:
            raise UsageError(f"image {file} has {count} bands, {len(bands)} were named")
        names, source = tuple(bands), "as named"
    elif first.names:
        names, source = first.names, "by the files' band names"
    elif count == len(EUROSAT_BANDS):
        names, source = EUROSAT_BANDS, "no names in the files: EuroSAT's order"
    else:
        raise UsageError(
            f"image {file} has {count} bands without names: say which with --bands, in the "
            "files' order, as B02,B03,B04,B08"
        )
    return match_bands(names, modality or _modality_of(names, file), source, file)


def _modality_of(names: Sequence[str], file: str) -> str:
    if any(canonical(name, "s1") for name in names):
        return "s1"
    if any(canonical(name, "s2_l1c") == "B10" for name in names):
        return "s2_l1c"
    raise UsageError(
        f"image {file}: its bands ({', '.join(names)}) do not tell Sentinel-2 L1C from L2A: say "
        "which with --modality s2_l1c or s2_l2a"
    )


def _physical(raster: _Raster, modality: str, file: str) -> NDArray[np.float32]:
    """(C, H, W) in the modality's unit, NaN where there is no data."""
    sensor = MODALITIES[modality]
    integers = raster.pixels.dtype.kind in "ui"
    if integers and sensor.unit == "reflectance":
        pixels = sensor.to_physical(raster.pixels)
    elif integers:
        raise UsageError(f"image {file} is {raster.pixels.dtype}: {modality} is wanted in dB")
    else:
        pixels = raster.pixels.astype(np.float32)
        # Zeros are what archives leave where they have nothing.
        pixels[~np.isfinite(pixels) | (pixels == 0)] = np.nan
    if raster.nodata is not None:
        pixels[raster.pixels == raster.nodata] = np.nan
    if integers or not np.isfinite(pixels).any():
        return pixels
    if sensor.unit == "reflectance" and np.nanmax(pixels) > _HIGHEST_REFLECTANCE:
        raise UsageError(
            f"image {file} holds floats up to {np.nanmax(pixels):g}, which are no reflectance: "
            "store digital numbers as integers, or divide by 10000"
        )
    if sensor.unit == "dB" and np.nanmin(pixels) > 0:
        raise UsageError(
            f"image {file} has no value below 0, so it is not in dB: store 10 log10(power)"
        )
    return pixels

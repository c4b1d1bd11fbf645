"""A GeoTIFF of one sensor: which band is which, physical units, and whether it fits the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.errors
from numpy.typing import NDArray
from rasterio.io import DatasetReader, MemoryFile

from terrafm.data.sources.raster import size_in_memory
from terrafm.errors import UsageError
from terrafm.eval.band_names import BandMatch, canonical, match_bands
from terrafm.modalities import MODALITIES
from terrafm.storage import read_bytes
from terrafm.storage.claims import check_claim

# Sentinel-2 L1C as EuroSAT's authors stored it: B8A comes last.
EUROSAT_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
)  # fmt: skip
SUFFIXES = (".tif", ".tiff")
# Reflectance above this is a digital number that was made a float.
_HIGHEST_REFLECTANCE = 20.0
_GSD_TOLERANCE = 0.05


@dataclass(frozen=True)
class Header:
    """What a file says about its pixels.

    Attributes:
        count: bands.
        names: of the bands; empty where the file names none.
        dtype: of a stored pixel.
        nodata: the file's nodata value, or None.
        unit: of its coordinates: "metres", "degrees", or "" without a CRS.
        gsd: side of a pixel, in that unit.
    """

    count: int
    names: tuple[str, ...]
    dtype: str
    nodata: float | None
    unit: str
    gsd: float

    @classmethod
    def of(cls, image: DatasetReader) -> "Header":
        """Of an open file."""
        names = tuple(name or "" for name in image.descriptions)
        unit, gsd = "", 1.0
        if image.crs is not None:
            unit = "degrees" if image.crs.is_geographic else "metres"
            gsd = float(abs(image.res[0]))
        return cls(
            image.count, names if any(names) else (), image.dtypes[0], image.nodata, unit, gsd
        )

    def check_like(self, first: "Header", file: str, first_file: str) -> None:
        """Refuses a file that cannot be read as the first one is.

        Raises:
            UsageError: other bands, another kind of CRS, or another pixel size.
        """
        if self.count != first.count:
            raise UsageError(f"image {file} has {self.count} bands, {first_file} has {first.count}")
        if self.names != first.names:
            raise UsageError(f"image {file} names its bands otherwise than {first_file}")
        if self.unit != first.unit:
            raise UsageError(
                f"image {file} lies in {_crs_text(self.unit)}, {first_file} in "
                f"{_crs_text(first.unit)}: reproject one of them"
            )
        if abs(self.gsd - first.gsd) > _GSD_TOLERANCE * first.gsd:
            raise UsageError(
                f"image {file} has pixels of {self.gsd:g} {self.unit}, {first_file} of "
                f"{first.gsd:g}: resample one of them"
            )


def read_whole(file: str) -> tuple[Header, NDArray[Any]]:
    """A file's header and (C, H, W) pixels as stored.

    Raises:
        UsageError: it cannot be read, or claims more pixels than its bytes can hold or than fit
            into memory.
    """
    try:
        content = read_bytes(file)
        with MemoryFile(content) as memory, memory.open(driver="GTiff") as image:
            check_claim(size_in_memory(image), len(content))
            return Header.of(image), image.read()
    except MemoryError:
        raise UsageError(f"cannot read image {file}: its pixels do not fit into memory") from None
    except (rasterio.errors.RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {file}: {error}") from None


def match_header(
    first: Header, modality: str | None, bands: Sequence[str] | None, file: str
) -> BandMatch:
    """Which band of a file is which band of a modality.

    Args:
        first: header of the file.
        modality: whose bands; by default what they say.
        bands: their names, in the file's order; by default the file's own, or EuroSAT's for 13
            bands without names.
        file: for messages.

    Raises:
        UsageError: it cannot be told.
    """
    count = first.count
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


def physical(
    stored: NDArray[Any], nodata: float | None, modality: str, file: str
) -> NDArray[np.float32]:
    """(C, H, W) in the modality's unit, NaN where there is no data.

    Sentinel-2 integers are digital numbers: reflectance = number / 10000, 0 is nodata, no offset
    is removed; floats are reflectance. Sentinel-1 is dB.

    Raises:
        UsageError: values that cannot be in the unit.
    """
    sensor = MODALITIES[modality]
    integers = stored.dtype.kind in "ui"
    if integers and sensor.unit == "reflectance":
        pixels = sensor.to_physical(stored)
    elif integers:
        raise UsageError(f"image {file} is {stored.dtype}: {modality} is wanted in dB")
    else:
        pixels = stored.astype(np.float32)
        # Zeros are what archives leave where they have nothing.
        pixels[~np.isfinite(pixels) | (pixels == 0)] = np.nan
    if nodata is not None:
        pixels[stored == nodata] = np.nan
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


def _crs_text(unit: str) -> str:
    return f"a CRS in {unit}" if unit else "no CRS"


def _modality_of(names: Sequence[str], file: str) -> str:
    if any(canonical(name, "s1") for name in names):
        return "s1"
    if any(canonical(name, "s2_l1c") == "B10" for name in names):
        return "s2_l1c"
    raise UsageError(
        f"image {file}: its bands ({', '.join(names)}) do not tell Sentinel-2 L1C from L2A: say "
        "which with --modality s2_l1c or s2_l2a"
    )

"""Which unit raw pixels are in, which of them are missing, and how they become storage integers.

Sentinel-2: digital numbers (DN, reflectance * 10000), or reflectance as floats. Shards hold uint16
DN without the offset of newer products: max(DN - offset, 1), with 0 for nodata.

Sentinel-1: linear power or dB. Shards hold int16 hundredths of a dB, not below -50 dB, with -32768
for nodata.

Sensors of other packages: what files and entries state, see `terrafm.modality.Modality`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import PixelError
from terrafm.modalities import MODALITIES
from terrafm.modality import Modality

OFFSET = 1000
"""What Sentinel-2 products since baseline 04.00 add to their digital numbers."""
S1_FLOOR = -5000

# Fill values that archives leave without saying so, and that no sensor measures.
_SENTINELS = (-9999, -32768, -32767, -99999, -2147483648)
_HUGE = 1e30
# Neither noise nor a corner reflector comes near it.
_LARGEST_DB = 100.0
_STEPS = 10000
_SAMPLED = 100_000
# The bright pixels of any scene in daylight, as floats: below is too dark, above is another unit.
_LEAST_REFLECTANCE, _MOST_REFLECTANCE = 1e-3, 3.0
_BYTE = 255
# Medians of whole products. A reflectance of 2.5 has no ground, not even with the offset; +10 dB
# and -60 dB have none either.
_MOST_DN = 25_000
_MOST_POWER, _LEAST_DB = 10.0, -60.0


@dataclass(frozen=True)
class Decision:
    """What a product's pixels mean.

    Attributes:
        offset: DN to subtract: 0 or 1000, or -1000 where the file's own tag took it off twice;
            always 0 for radar.
        reason: evidence for the offset.
        unit: of the raw pixels: "DN", "reflectance", "linear" or "dB"; of other packages' sensors
            that of the sensor.
        margin: DN between the evidence and the value that would have decided otherwise; None
            where it is not of pixels.
    """

    offset: int
    reason: str
    unit: str
    margin: int | None = None


def is_missing(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Pixels without a measurement, in whatever unit: nodata, not finite, or known fill values."""
    missing = np.zeros(pixels.shape, dtype=bool)
    if pixels.dtype == np.float16:
        # It cannot hold what it is compared with.
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind == "f":
        # NaN compares false.
        missing |= ~(np.abs(pixels) < _HUGE)
    if pixels.dtype.kind in "fi":
        missing |= np.isin(pixels, _fitting(pixels.dtype))
    if nodata is not None and np.isfinite(nodata):
        missing |= pixels == nodata
    return missing


def unit_of(
    bands: Mapping[str, NDArray[Any]],
    modality: str,
    nodata: float | None,
    where: str,
    usual: str | None = None,
) -> str:
    """The unit that raw pixels of a product are in.

    Args:
        bands: arrays of any shape, raw.
        modality: key of `terrafm.modalities.MODALITIES`.
        nodata: value of missing pixels besides NaN, or None.
        where: what an error names.
        usual: unit of the products beside it, which the darkest one may share.

    Returns:
        "DN" or "reflectance"; "dB" or "linear"; the sensor's own unit of other packages' sensors.

    Raises:
        PixelError: the values can be in neither; says what they look like.
    """
    sensor = MODALITIES[modality]
    if sensor.radiometry == "stated":
        return _stated_unit(bands, sensor, nodata, where)
    values = np.concatenate([sample(band, nodata) for band in bands.values()]).astype(np.float64)
    if sensor.radiometry == "sentinel-1":
        return _radar_unit(values, where, usual)
    if any(band.dtype.itemsize == 1 for band in bands.values()):
        raise PixelError(
            where,
            "8-bit pixels look like a picture: reflectance needs the 16-bit digital numbers (or "
            "a scale tag that says what a step is)",
        )
    floats = any(band.dtype.kind == "f" for band in bands.values())
    return _optical_unit(values, where, usual, floats=floats)


def to_storage(
    pixels: NDArray[Any], modality: str, nodata: float | None, decision: Decision
) -> NDArray[Any]:
    """Raw pixels to storage integers.

    Args:
        pixels: any shape, in the decided unit, of any numeric type.
        modality: key of `terrafm.modalities.MODALITIES`.
        nodata: value of missing pixels besides NaN, or None.
        decision: of the whole product, not of these pixels alone.

    Returns:
        The modality's storage type, of the same shape; pixels without a measurement hold its
        nodata value.
    """
    sensor = MODALITIES[modality]
    missing = is_missing(pixels, nodata)
    if sensor.radiometry == "sentinel-1":
        stored = _radar(pixels, missing, decision.unit)
    elif sensor.radiometry == "sentinel-2":
        stored = _optical(pixels, missing, decision)
    else:
        stored = _stated(pixels, missing, sensor)
    stored[missing] = sensor.nodata
    return stored


def stated_values(pixels: NDArray[Any], sensor: Modality) -> NDArray[np.float64]:
    """Raw pixels without a scale tag as physical values, NaN where the entry says so.

    Args:
        pixels: integers as a file has them, or floats, which are physical values already.
        sensor: of another package, whose entry states scale and offset.
    """
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float64)
    values = pixels.astype(np.float64) * sensor.raw_scale + sensor.raw_offset
    if sensor.raw_nodata is not None:
        values[pixels == sensor.raw_nodata] = np.nan
    return values


def digital_numbers(pixels: NDArray[Any], unit: str) -> NDArray[Any]:
    """Optical pixels as digital numbers; floats are not rounded."""
    scaled: NDArray[Any] = pixels.astype(np.float64) * _STEPS if unit == "reflectance" else pixels
    return scaled


def sample(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """(n,) measured values, evenly taken from all where they are many."""
    flat = pixels.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLED)]
    found: NDArray[Any] = some[~is_missing(some, nodata) & (some != 0)]
    if not found.size and some.size < flat.size:
        found = flat[~is_missing(flat, nodata) & (flat != 0)]
    return found


def _fitting(dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return np.array(_SENTINELS, dtype)
    least = np.iinfo(dtype).min
    return np.array([value for value in _SENTINELS if value >= least], dtype)


def _stated_unit(
    bands: Mapping[str, NDArray[Any]], sensor: Modality, nodata: float | None, where: str
) -> str:
    """The sensor's own unit, unless most values could not even be stored in it."""
    least, most = sensor.storable
    if sensor.unit == "reflectance":
        most = min(most, _MOST_REFLECTANCE)
    for name, band in bands.items():
        # Zero is a height above the sea like any other: `sample` would leave it out.
        values = stated_values(band.reshape(-1)[:: max(1, band.size // _SAMPLED)], sensor)
        values = values[~is_missing(values, nodata)]
        middle = float(np.median(values)) if values.size else least
        if not least <= middle <= most:
            raise PixelError(
                where,
                f"{name} has a median of {middle:.6g} {sensor.unit}, and {sensor.name} holds "
                f"{least:g} to {most:g}: does the file lack a scale tag, or the sensor raw_scale?",
            )
    return sensor.unit


def _optical_unit(
    values: NDArray[np.float64], where: str, usual: str | None, *, floats: bool
) -> str:
    if not values.size:
        return usual or ("reflectance" if floats else "DN")
    # Glints and defects lie above what a scene is made of.
    high = float(np.percentile(values, 99.9))
    if floats and high <= _MOST_REFLECTANCE:
        if high < _LEAST_REFLECTANCE and usual != "reflectance":
            raise PixelError(
                where,
                f"floats of at most about {high:.2g} are too dark for reflectance: is a scale tag "
                "applied twice?",
            )
        return "reflectance"
    # A dark place of an archive of digital numbers is in whole numbers, as percent are not.
    whole = not floats or bool((values == np.rint(values)).all())
    if high <= _BYTE and not (usual == "DN" and whole):
        raise PixelError(
            where,
            f"values up to about {high:.4g} look like percent or an 8-bit picture, not like "
            "reflectance times 10,000",
        )
    middle = float(np.median(values))
    if middle > _MOST_DN:
        raise PixelError(
            where,
            f"a median of {middle:.6g} would be a reflectance of {middle / _STEPS:.2g}: this looks "
            "like radiance or a stretched picture",
        )
    return "DN"


def _radar_unit(values: NDArray[np.float64], where: str, usual: str | None) -> str:
    """Most backscatter in dB is negative, power never is."""
    if not values.size:
        return usual or "linear"
    middle = float(np.median(values))
    if middle > _MOST_POWER:
        raise PixelError(
            where,
            f"a median of {middle:.4g} would be a backscatter of {10 * np.log10(middle):+.0f} dB: "
            "this looks like uncalibrated amplitudes (GRD digital numbers); calibrate to sigma0 "
            "or gamma0",
        )
    if middle < _LEAST_DB:
        raise PixelError(
            where,
            f"a median of {middle:.4g} is no dB: this looks like hundredths of a dB without the "
            "scale tag that says so (gdal_edit.py -scale 0.01)",
        )
    return "dB" if middle < 0 else "linear"


def _radar(pixels: NDArray[Any], missing: NDArray[np.bool_], unit: str) -> NDArray[Any]:
    values = np.where(missing, 1.0, pixels).astype(np.float64)
    if unit == "linear":
        # No echo at all is fill, or what is left where noise was subtracted.
        missing |= values <= 0
        values = 10.0 * np.log10(np.where(missing, 1.0, values))
    else:
        # No measured backscatter is 0 dB to the last digit: that is fill.
        missing |= values == 0
    missing |= np.abs(values) > _LARGEST_DB
    return np.clip(np.rint(100.0 * values), S1_FLOOR, 32767).astype(np.int16)


def _optical(pixels: NDArray[Any], missing: NDArray[np.bool_], decision: Decision) -> NDArray[Any]:
    values = digital_numbers(np.where(missing, 0, pixels), decision.unit)
    # Zero is the sensor's own nodata, and that of floats. Archives without the offset may hold
    # small negative DN, reflectance under zero; from -1000 down they can only be a fill value.
    missing |= (values == 0) | (values <= -OFFSET)
    if values.dtype.kind == "f":
        values = np.rint(values)
    return np.clip(values.astype(np.int64) - decision.offset, 1, 65535).astype(np.uint16)


def _stated(pixels: NDArray[Any], missing: NDArray[np.bool_], sensor: Modality) -> NDArray[Any]:
    values = stated_values(pixels, sensor)
    missing |= ~np.isfinite(values)
    stored = np.rint(np.where(missing, 0.0, values) / sensor.scale)
    limits = np.iinfo(sensor.dtype)
    stored = np.clip(stored, limits.min, limits.max)
    # What was measured must not become the value of what was not.
    beside = sensor.nodata + (1 if sensor.nodata < limits.max else -1)
    stored[stored == sensor.nodata] = beside
    return stored.astype(sensor.dtype)

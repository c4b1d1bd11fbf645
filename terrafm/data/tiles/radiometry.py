"""Raw pixels to storage integers, and the evidence for what the raw pixels mean.

Sentinel-2: from processing baseline 04.00 on, digital numbers (DN) are reflectance * 10000 + 1000.
Shards hold uint16 DN without that offset: max(DN - 1000, 1), with 0 for nodata.

Sentinel-1: shards hold int16 hundredths of a dB, 10 log10(linear power), not below -50 dB.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.sources.base import Product
from terrafm.modalities import MODALITIES

OFFSET = 1000
FIRST_BASELINE_WITH_OFFSET = 400
# Collection-1 test products, published without the offset.
_TEST_BASELINE = 9999
_BASELINE = re.compile(r"_N(\d{4})_")

# Reflectance of shadows falls slightly below zero after atmospheric correction, so that the
# darkest pixels of an offset product lie a little under 1000.
_DARK_WITH_OFFSET = 900
# Bands where the atmosphere changes reflectance least: L2A and L1C differ there by the offset.
_CLEAR_BANDS = ("B8A", "B11", "B12")

S1_FLOOR = -5000
_S1_CEILING = 32767


@dataclass(frozen=True)
class Decision:
    """What a product's pixels mean.

    Attributes:
        offset: DN to subtract, 0 or 1000; always 0 for radar.
        reason: evidence for the offset.
        unit: of the raw pixels, "DN", "linear" or "dB".
    """

    offset: int
    reason: str
    unit: str


def decide(products: Mapping[str, Product]) -> dict[str, Decision]:
    """Decides offset and unit of all products of one cell.

    Every optical product is judged by itself: co-located Level-1C and Level-2A may differ. The
    evidence, in this order: the processing baseline in the product's name; the cirrus band of
    Level-1C, which sees almost no ground and so is near zero reflectance; for Level-2A the
    difference to the decided Level-1C in bands that the atmosphere hardly touches; last, the
    darkest pixels, which a bright desert can deceive.
    """
    decisions: dict[str, Decision] = {}
    for name, product in sorted(products.items()):
        if name == "s1":
            decisions[name] = Decision(0, "radar", radar_unit(product))
            continue
        found = _by_baseline(product.product_id) or _by_cirrus(product)
        if found is None and name == "s2_l2a" and "s2_l1c" in decisions:
            found = _by_pair(product, products["s2_l1c"], decisions["s2_l1c"].offset)
        offset, reason = found or _by_dark_pixels(product)
        decisions[name] = Decision(offset, reason, "DN")
    return decisions


def radar_unit(product: Product) -> str:
    """Is it "dB" or "linear"? Most backscatter in dB is negative, power never is."""
    values = np.concatenate([_valid(band, product.nodata) for band in product.bands.values()])
    # Exactly zero is how exports fill what was masked, in either unit.
    values = values[values != 0]
    return "dB" if values.size and np.median(values) < 0 else "linear"


def to_storage(
    pixels: NDArray[Any], modality: str, nodata: float | None, decision: Decision
) -> NDArray[Any]:
    """Raw pixels to storage integers.

    Args:
        pixels: any shape, raw digital numbers, linear power or dB, of any numeric type.
        modality: key of `terrafm.modalities.MODALITIES`.
        nodata: value of missing pixels besides NaN, or None.
        decision: of the whole product, not of these pixels alone.

    Returns:
        uint16 (optical) or int16 (radar) of the same shape; missing, NaN and infinite pixels hold
        the modality's nodata value.
    """
    missing = _missing(pixels, nodata)
    if modality == "s1":
        stored = _radar(pixels, missing, decision.unit)
    else:
        stored = _optical(pixels, missing, decision.offset)
    stored[missing] = MODALITIES[modality].nodata
    return stored


def _radar(pixels: NDArray[Any], missing: NDArray[np.bool_], unit: str) -> NDArray[Any]:
    if unit == "dB" and np.issubdtype(pixels.dtype, np.floating):
        # No measured backscatter is 0 dB to the last digit: that is fill.
        missing |= pixels == 0
    values = np.where(missing, 1.0, pixels).astype(np.float64)
    if unit == "linear":
        with np.errstate(divide="ignore"):
            values = 10.0 * np.log10(np.maximum(values, 0.0))
    return np.clip(np.rint(100.0 * values), S1_FLOOR, _S1_CEILING).astype(np.int16)


def _optical(pixels: NDArray[Any], missing: NDArray[np.bool_], offset: int) -> NDArray[Any]:
    values = np.where(missing, 0, pixels)
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint(values)
    # A DN of 0 is the sensor's own nodata. Archives without the offset may hold small negative
    # DN, reflectance under zero; from -1000 down they can only be a fill value.
    missing |= (values == 0) | (values <= -OFFSET)
    return np.clip(values.astype(np.int64) - offset, 1, 65535).astype(np.uint16)


def _missing(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    missing = np.zeros(pixels.shape, dtype=bool)
    if np.issubdtype(pixels.dtype, np.floating):
        missing |= ~np.isfinite(pixels)
    if nodata is not None and np.isfinite(nodata):
        missing |= pixels == nodata
    return missing


def _valid(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    valid: NDArray[Any] = pixels[~_missing(pixels, nodata)]
    return valid


def _valid_dn(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    values = _valid(pixels, nodata)
    numbers: NDArray[Any] = values[(values != 0) & (values > -OFFSET)]
    return numbers


def _by_baseline(product_id: str) -> tuple[int, str] | None:
    match = _BASELINE.search(product_id)
    if match is None:
        return None
    baseline = int(match.group(1))
    present = FIRST_BASELINE_WITH_OFFSET <= baseline != _TEST_BASELINE
    return (OFFSET if present else 0), f"baseline N{match.group(1)}"


def _by_cirrus(product: Product) -> tuple[int, str] | None:
    if product.cirrus is None:
        return None
    values = _valid_dn(product.cirrus, product.nodata)
    if not values.size:
        return None
    return (OFFSET if np.percentile(values, 0.1) >= OFFSET else 0), "cirrus band"


def _by_pair(product: Product, level_1c: Product, offset: int) -> tuple[int, str] | None:
    medians = []
    for band in _CLEAR_BANDS:
        upper, lower = level_1c.bands[band], product.bands[band]
        if upper.shape != lower.shape:
            return None
        both = ~_missing(upper, level_1c.nodata) & ~_missing(lower, product.nodata)
        both &= (upper > 0) & (lower > 0)
        if not both.any():
            return None
        medians.append(np.median(lower[both].astype(np.float64) - upper[both] + offset))
    return (OFFSET if np.median(medians) > OFFSET / 2 else 0), "paired with Level-1C"


def _by_dark_pixels(product: Product) -> tuple[int, str]:
    bands = [_valid_dn(band, product.nodata) for band in product.bands.values()]
    darkest = [float(np.percentile(values, 1)) for values in bands if values.size]
    if not darkest:
        return 0, "no valid pixels"
    return (OFFSET if min(darkest) >= _DARK_WITH_OFFSET else 0), "dark pixels"

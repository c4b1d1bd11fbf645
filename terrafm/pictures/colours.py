"""Pixels as people see them: natural and false colours, their stretch, colours of land cover."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from terrafm.data.shards.dataset import Dataset
from terrafm.modalities import MODALITIES
from terrafm.pictures.figure import SAFE_COLOURS

# ESA WorldCover's published colours; two classes differ in more than hue wherever they are drawn.
WORLDCOVER_COLOURS = {
    10: "#006400",
    20: "#ffbb22",
    30: "#ffff4c",
    40: "#f096ff",
    50: "#fa0000",
    60: "#b4b4b4",
    70: "#f0f0f0",
    80: "#0064c8",
    90: "#0096a0",
    95: "#00cf75",
    100: "#fae6a0",
}


def true_colour(image: NDArray[np.float32], name: str = "s2_l2a") -> NDArray[np.float32]:
    """The picture bands of (C, H, W) in model band order, red, green and blue; (H, W, 3).

    One band alone is grey.
    """
    sensor = MODALITIES[name]
    planes = [image[sensor.bands.index(band)] for band in sensor.picture]
    return np.stack(planes if len(planes) > 1 else planes * 3, axis=-1)


def false_colour(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """VV, VH and VV - VH of (2, H, W) dB; (H, W, 3)."""
    return np.stack([image[0], image[1], image[0] - image[1]], axis=-1)


def colours(image: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Natural colour, or false colour of Sentinel-1, of (C, H, W) physical; (H, W, 3)."""
    return false_colour(image) if name == "s1" else true_colour(image, name)


def colour_bands(name: str) -> set[str]:
    """Bands that `colours` needs."""
    return set(MODALITIES[name].bands if name == "s1" else MODALITIES[name].picture)


def whole_tile(dataset: Dataset, pixels: dict[str, Any], name: str) -> NDArray[np.float32]:
    """A tile in colour at its finest GSD, (H, W, 3) physical; NaN where it has no data.

    Args:
        dataset: where the tile is.
        pixels: cell group name -> (bands, h, w) storage integers; those that the colours need.
        name: modality.
    """
    modality = MODALITIES[name]
    side = dataset.tile_size
    stacked = np.full((modality.channels, side, side), np.nan, np.float32)
    for group in dataset.groups:
        if group.modality == name and group.name in pixels:
            array = modality.to_physical(pixels[group.name])
            times = side // array.shape[-1]
            for band, plane in zip(group.bands, array, strict=True):
                full = np.repeat(np.repeat(plane, times, 0), times, 1)
                stacked[modality.bands.index(band)] = full
    return colours(stacked, name)


def stretch_limits(image: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """(2, 3) darkest and brightest shown value of each colour of an (H, W, 3) image."""
    valid = image[np.isfinite(image).all(-1)]
    if not len(valid):
        return np.array([[0.0] * 3, [1.0] * 3])
    low, q1, middle, q3, high = np.percentile(valid, (2, 25, 50, 75, 98), axis=0)
    # A few bright clouds must not leave the ground black.
    high = np.minimum(high, middle + 5 * (q3 - q1))
    if name != "s1":
        # One range for red, green and blue keeps the hue, of the ground and of the air.
        low, high = np.full(3, low.min()), np.full(3, high.max())
    return np.stack([low, np.maximum(high, low + 1e-6)])


def stretch(image: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) in 0..1 between limits, light grey where there is no data."""
    low, high = limits
    shown = np.clip((image - low) / (high - low), 0, 1) ** 0.8
    return np.where(np.isfinite(image).all(-1, keepdims=True), shown, 0.92)


def class_colour(code: int, number: int) -> str:
    """WorldCover's colour of a class; of other legends one by the class's number."""
    return WORLDCOVER_COLOURS.get(code, SAFE_COLOURS[number % len(SAFE_COLOURS)])


def bare(axis: Axes) -> None:
    """Leaves nothing of an axis but what is drawn in it."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)

"""Pixels of a scene's rasters on a cell's grid: windows where grids agree, else warped.

Where the coordinate system is the cell's, pixels have its size and lie on its lattice, they are
copied. Else they are warped by GDAL, bilinear, from a window of the source with a margin:
reflectance as it is, radar as linear power.
"""

from collections.abc import Sequence
from contextlib import suppress
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.geotiff import read_stored, spread_windows
from terrafm.data.rasters.opening import check_window
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.open_layers import Image, OpenLayers
from terrafm.data.sources.scenes.scene import Layer
from terrafm.errors import PixelError

# What a warped pixel may need around the window: the kernel of bilinear, and a little more.
_MARGIN = 3
_ALIGNED = 1e-3
_NOT_FEWER = 0.8
# Windows along each side that tell the unit of radar; more where those hold nothing.
_LOOKS = (4, 16)


def fetch_layers(layers: OpenLayers, wanted: Sequence[tuple[Layer, Grid]]) -> None:
    """Fetches what is read next, of all rasters at once, as far as they lie in stores.

    A raster that cannot be opened is left to who reads it.

    Args:
        layers: open rasters.
        wanted: each with the grid that it will be read on.

    Raises:
        StoreRefusedError, StoreFailedError: a store does not answer.
    """
    layers.reach([layer for layer, _ in wanted])
    parts = []
    for layer, target in wanted:
        with suppress(BadCellError):
            image = layers.image(layer)
            window = _window_on(image.grid, target)
            if window is not None:
                parts.append((layer, image, [window]))
    layers.fetch(parts)


def read_layer(
    layers: OpenLayers, layer: Layer, target: Grid, modality: str, unit: str = ""
) -> NDArray[Any]:
    """A band on a grid.

    Args:
        layers: open rasters.
        layer: the band.
        target: grid of the result.
        modality: whose band it is.
        unit: of radar: "dB", "amplitude" or "linear".

    Returns:
        (H, W): optical integers, 0 where nothing was measured, or floats with NaN there; radar as
        linear power, or as the file has it where nothing was warped and it is no amplitude.

    Raises:
        BadCellError: it cannot be read.
    """
    image = layers.image(layer)
    try:
        at = _offset(image.grid, target)
        if at is not None:
            return _copied(image, layer, target, modality, at, unit)
        return _warped(image, layer, target, modality, unit)
    except RasterioError:
        layers.forget(layer)
        raise BadCellError(layer.where, "not readable (damaged or cut short)") from None
    except MemoryError:
        raise BadCellError(layer.where, "its pixels do not fit into memory") from None
    except PixelError as fault:
        raise BadCellError(fault.where, fault.why) from None
    except ValueError as error:
        raise BadCellError(layer.where, str(error)) from None


def read_classes(layers: OpenLayers, layer: Layer, target: Grid) -> NDArray[np.uint8]:
    """(bands, H, W) classes of a mask on a grid, the nearest; 0 outside.

    Raises:
        BadCellError: it cannot be read.
    """
    image = layers.image(layer)
    found = np.zeros((image.dataset.count, *target.shape), np.uint8)
    try:
        source = _source_window(image.grid, target)
        if source is None:
            return found
        check_window(image.dataset, source)
        pixels = image.dataset.read(window=source)
        reproject(
            pixels.astype(np.uint8), found, src_crs=image.grid.crs, dst_crs=target.crs,
            src_transform=_moved(image.grid, source), dst_transform=Affine(*target.transform),
            resampling=Resampling.nearest,
        )  # fmt: skip
    except (RasterioError, ValueError, MemoryError):
        layers.forget(layer)
        raise BadCellError(layer.where, "its mask is not readable (damaged or cut short)") from None
    return found


def sample_layer(layers: OpenLayers, layer: Layer, modality: str) -> NDArray[Any]:
    """(n,) some pixels of a band from all over it, always the same ones; NaN or 0 where missing.

    Raises:
        BadCellError: it cannot be read.
    """
    image = layers.image(layer)
    height, width = image.grid.shape
    try:
        for a_side in _LOOKS:
            windows = list(spread_windows(height, width, a_side))
            layers.fetch([(layer, image, windows)])
            parts = [_measured(image, layer, w, modality).reshape(-1) for w in windows]
            pixels = np.concatenate(parts)
            if (np.isfinite(pixels) & (pixels != 0)).any():
                break
    except RasterioError:
        layers.forget(layer)
        raise BadCellError(layer.where, "not readable (damaged or cut short)") from None
    except PixelError as fault:
        raise BadCellError(fault.where, fault.why) from None
    except ValueError as error:
        raise BadCellError(layer.where, str(error)) from None
    return pixels


def linear_power(pixels: NDArray[Any], unit: str) -> NDArray[np.float64]:
    """Radar as linear power; NaN stays.

    Args:
        pixels: floats, NaN where nothing was measured.
        unit: "dB", "amplitude" or "linear".
    """
    values: NDArray[np.float64] = pixels.astype(np.float64)
    if unit == "dB":
        # No measured backscatter is 0 dB to the last digit, nor 100 dB: that is fill.
        values[(values == 0) | (np.abs(values) > 100)] = np.nan
        return np.asarray(10.0 ** (values / 10.0))
    values[~(values > 0)] = np.nan
    return values * values if unit == "amplitude" else values


def _window_on(source: Grid, target: Grid) -> Window | None:
    """Pixels of the source that are read for a target; None where there are none."""
    at = _offset(source, target)
    if at is None:
        return _source_window(source, target)
    return _common(source, target, at)


def _common(source: Grid, target: Grid, at: tuple[int, int]) -> Window | None:
    (row, column), (rows, columns), (height, width) = at, target.shape, source.shape
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + rows, height), min(column + columns, width)
    if top >= bottom or left >= right:
        return None
    return Window(left, top, right - left, bottom - top)


def _offset(source: Grid, target: Grid) -> tuple[int, int] | None:
    """Row and column of the target's corner in the source; None where pixels do not coincide."""
    (a, _, c, _, e, f), (ta, _, tc, _, te, tf) = source.transform, target.transform
    if source.crs != target.crs or abs(a - ta) > 1e-9 or abs(e - te) > 1e-9:
        return None
    column, row = (tc - c) / a, (tf - f) / e
    if max(abs(column - round(column)), abs(row - round(row))) > _ALIGNED:
        return None
    return round(row), round(column)


def _copied(
    image: Image, layer: Layer, target: Grid, modality: str, at: tuple[int, int], unit: str
) -> NDArray[Any]:
    window = _common(image.grid, target, at)
    if window is None:
        raise BadCellError(layer.where, "it does not reach the cell")
    pixels = _measured(image, layer, window, modality)
    if unit == "amplitude":
        pixels = linear_power(pixels, unit)
    if pixels.shape == target.shape:
        return pixels
    missing = np.nan if pixels.dtype.kind == "f" else 0
    found = np.full(target.shape, missing, pixels.dtype)
    top, left = int(window.row_off) - at[0], int(window.col_off) - at[1]
    found[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return found


def _warped(image: Image, layer: Layer, target: Grid, modality: str, unit: str) -> NDArray[Any]:
    window = _source_window(image.grid, target)
    if window is None:
        raise BadCellError(layer.where, "it does not reach the cell")
    pixels = _measured(image, layer, window, modality)
    integers = pixels.dtype.kind in "ui"
    if modality == "s1":
        values = linear_power(pixels, unit)
    else:
        values = pixels.astype(np.float64)
        values[(pixels == 0) if integers else ~np.isfinite(values)] = np.nan
    found = np.full(target.shape, np.nan)
    reproject(
        values, found, src_crs=image.grid.crs, dst_crs=target.crs, src_nodata=np.nan,
        dst_nodata=np.nan, src_transform=_moved(image.grid, window),
        dst_transform=Affine(*target.transform), resampling=Resampling.bilinear,
        **_scales(image.grid, target),
    )  # fmt: skip
    if not integers or modality == "s1":
        return found.astype(np.float32)
    whole = np.where(np.isfinite(found), np.rint(found), 0)
    limits = np.iinfo(pixels.dtype)
    return np.clip(whole, limits.min, limits.max).astype(pixels.dtype)


def _measured(image: Image, layer: Layer, window: Window, modality: str) -> NDArray[Any]:
    check_window(image.dataset, window)
    stored = read_stored(image.dataset, image.header, window)
    at = image.header.indexes.index(layer.band)
    band: NDArray[Any] = stored.measured(modality, layer.where, [at])[0]
    return band


def _source_bounds(source: Grid, target: Grid) -> tuple[float, float, float, float] | None:
    """The target in pixels of the source: left, upper, right, lower; None where it has no place."""
    rows, columns = target.shape
    bounds = array_bounds(rows, columns, Affine(*target.transform))
    left, bottom, right, top = transform_bounds(target.crs, source.crs, *bounds, densify_pts=21)
    if not np.isfinite((left, bottom, right, top)).all():
        return None
    a, _, c, _, e, f = source.transform
    return (left - c) / a, (top - f) / e, (right - c) / a, (bottom - f) / e


def _source_window(source: Grid, target: Grid) -> Window | None:
    """Pixels of the source that those of the target are made of; None where there are none."""
    found = _source_bounds(source, target)
    if found is None:
        return None
    left, upper, right, lower = found
    height, width = source.shape
    first, last = max(floor(left) - _MARGIN, 0), min(ceil(right) + _MARGIN, width)
    top, bottom = max(floor(upper) - _MARGIN, 0), min(ceil(lower) + _MARGIN, height)
    if first >= last or top >= bottom:
        return None
    return Window(first, top, last - first, bottom - top)


def _scales(source: Grid, target: Grid) -> dict[str, float]:
    """Target pixels for each of the source, for GDAL's kernel: 1 where they are not fewer.

    GDAL takes them from the sizes of both windows, finds 0.99 for 1, and then averages with a
    kernel that is a little wide: positions were off by up to 0.08 pixels (3.10).
    """
    rows, columns = target.shape
    left, upper, right, lower = _source_bounds(source, target) or (0.0, 0.0, 1.0, 1.0)
    # The window around a rotated target is larger than the target.
    ratios = {"XSCALE": columns / (right - left), "YSCALE": rows / (lower - upper)}
    return {name: 1.0 if ratio > _NOT_FEWER else ratio for name, ratio in ratios.items()}


def _moved(source: Grid, window: Window) -> Affine:
    return Affine(*source.transform) @ Affine.translation(window.col_off, window.row_off)

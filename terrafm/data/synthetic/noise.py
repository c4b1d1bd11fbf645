"""Random fields in pixels: fractal noise, quantile thresholds, lines of even width, parcels."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
_COARSE = 6.0


def fractal(
    rng: np.random.Generator,
    px: int,
    longest: float,
    shortest: float = 4.0,
    persistence: float = 0.55,
) -> Field:
    """Sum of octaves of smooth noise, mean near 0, standard deviation near 1.

    Args:
        rng: source of randomness.
        px: side of the field, pixels.
        longest: wavelength of the first octave, pixels; each next one is half as long.
        shortest: no octave is shorter, pixels.
        persistence: amplitude of an octave relative to the one before it.

    Returns:
        (px, px) float32.
    """
    wavelengths = [longest / 2**k for k in range(32) if longest / 2**k >= shortest]
    amplitudes = [persistence**k for k in range(len(wavelengths))]
    # Long waves need few pixels: they are drawn on a grid four times coarser.
    side = -(-px // 4) + 1
    total = np.zeros((side, side), np.float32)
    for wavelength, amplitude in zip(wavelengths, amplitudes, strict=True):
        if wavelength >= 4 * _COARSE and side > 1:
            total += np.float32(amplitude) * _octave(rng, side, wavelength / 4)
    total = cv2.resize(total, (4 * side, 4 * side), interpolation=cv2.INTER_CUBIC)[:px, :px]
    for wavelength, amplitude in zip(wavelengths, amplitudes, strict=True):
        if wavelength < 4 * _COARSE:
            total = total + np.float32(amplitude) * _octave(rng, px, wavelength)
    power = math.sqrt(sum(a * a for a in amplitudes)) or 1.0
    return np.asarray(total / np.float32(power), np.float32)


def _octave(rng: np.random.Generator, px: int, wavelength: float) -> Field:
    # Knots half a wavelength apart; a random shift keeps the lattice from showing.
    step = wavelength / 2
    knots = math.ceil(px / step) + 4
    lattice = rng.standard_normal((knots, knots), dtype=np.float32)
    shift = 1 + rng.random(2)
    affine = np.array([[1 / step, 0, shift[0]], [0, 1 / step, shift[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(lattice, affine, (px, px), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    # Interpolation between independent knots lowers the variance to about 0.6.
    return np.asarray(field, np.float32) * np.float32(1.3)


def gradient(field: Field) -> tuple[Field, Field]:
    """Central differences (towards larger rows, towards larger columns), per pixel."""
    down = cv2.Sobel(field, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    right = cv2.Sobel(field, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    return np.asarray(down, np.float32), np.asarray(right, np.float32)


def above(field: Field, share: float, within: Mask | None = None) -> Mask:
    """The highest `share` of a field's pixels, as a mask; the share counts inside `within`."""
    inside = field if within is None else field[within]
    if share <= 0 or inside.size == 0:
        return np.zeros(field.shape, np.bool_)
    if share >= 1:
        return np.ones(field.shape, np.bool_) if within is None else within.copy()
    threshold = np.quantile(_sample(inside), 1 - share)
    mask = field >= threshold
    return mask if within is None else mask & within


def _sample(values: Field) -> Field:
    flat = values.ravel()
    return flat[:: max(1, flat.size // 40000)]


def contour(field: Field, width: float | Field, level: float = 0.0) -> Mask:
    """A line of even width (pixels) along the zero crossing of a smooth field: rivers, roads."""
    down, right = gradient(field)
    slope = cv2.magnitude(down, right) + np.float32(1e-6)
    return np.asarray(np.abs(field - np.float32(level)) < slope * np.float32(0.5) * width)


@dataclass(frozen=True)
class Parcels:
    """A patchwork of rotated rows of rectangles.

    Attributes:
        number: (px, px) int32 in 0..4095, the same within a parcel, nearly random between them.
        edge: (px, px) float32, distance to the parcel's border, pixels.
        along: (px, px) float32, coordinate along the rows, pixels: furrows follow it.
        across: (px, px) float32, coordinate across the rows, pixels.
    """

    number: NDArray[np.int32]
    edge: Field
    along: Field
    across: Field


def parcels(rng: np.random.Generator, px: int, width: float, height: float) -> Parcels:
    """Parcels of about `width` x `height` pixels at a random angle, rows shifted at random."""
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[0:px, 0:px].astype(np.float32)
    along = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    across = np.float32(math.cos(angle)) * y - np.float32(math.sin(angle)) * x
    v = across / np.float32(height)
    row = np.floor(v).astype(np.int32)
    shifts = rng.random(1024, dtype=np.float32)
    u = along / np.float32(width) + 8 * shifts[row & 1023]
    u += np.float32(0.12) * np.sin(np.float32(2 * math.pi) * u)
    column = np.floor(u).astype(np.int32)
    fu, fv = u - column, v - row
    edge = np.minimum(
        np.minimum(fu, 1 - fu) * np.float32(width), np.minimum(fv, 1 - fv) * np.float32(height)
    )
    number = (row * 7919 + column * 5347 + (row ^ column) * 97) & 4095
    return Parcels(number, edge, along, across)

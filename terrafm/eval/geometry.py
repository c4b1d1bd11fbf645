"""How features lie on the sphere: uniformity and alignment (Wang and Isola, ICML 2020)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_CHUNK = 512


def uniformity(features: NDArray[np.float32], temperature: float = 2.0) -> float | None:
    """Log of the mean over all pairs of different images of exp(-t ||x - y||^2); their equation 2.

    Args:
        features: (N, D) rows of unit length.
        temperature: t.

    Returns:
        0 (all in one point) down to about -4 at t = 2 (spread evenly); None where a value is not
        finite or there are fewer than two images.
    """
    count = len(features)
    if count < 2 or not np.isfinite(features).all():
        return None
    rows = features.astype(np.float64)
    squares = (rows**2).sum(1)
    total = 0.0
    for start in range(0, count, _CHUNK):
        block = slice(start, start + _CHUNK)
        distance = squares[block, None] + squares - 2.0 * (rows[block] @ rows.T)
        weights = np.exp(-temperature * distance)
        # An image and itself are no pair.
        here = np.arange(len(weights))
        weights[here, start + here] = 0.0
        total += float(weights.sum())
    return math.log(total / (count * (count - 1)))


def alignment(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    """Mean of ||x - y||^2 over positive pairs; their equation 1 with alpha = 2.

    Args:
        first: (N, D) rows of unit length.
        second: (N, D), the same images seen in another way, by another sensor for one.

    Returns:
        0 (the same) to 4; None where a value is not finite or there is no image.
    """
    if not len(first) or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    apart = first.astype(np.float64) - second
    return float((apart**2).sum(1).mean())

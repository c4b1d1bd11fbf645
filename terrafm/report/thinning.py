"""Fewer points that look the same: whatever stands out in a long curve stays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def picked_rows(columns: Sequence[Numbers], most: int) -> NDArray[np.intp]:
    """Rows of a few columns that keep every peak and dip a screen can show.

    Rows are cut into equal parts, and of each part those stay that hold the lowest and highest
    value of some column. The first and the last row stay too.

    Args:
        columns: (N,) each, NaN where there is no value.
        most: rows to keep, about; all are kept where there are no more.

    Returns:
        Rising row numbers.
    """
    length = len(columns[0]) if columns else 0
    if length <= most:
        return np.arange(length)
    parts = max(1, (most - 2) // (2 * len(columns)))
    edges = np.linspace(0, length, parts + 1).astype(int)
    kept = {0, length - 1}
    for column in columns:
        low, high = (
            np.where(np.isnan(column), np.inf, column),
            np.where(np.isnan(column), -np.inf, column),
        )
        for start, stop in pairwise(edges.tolist()):
            if start < stop and np.isfinite(low[start:stop]).any():
                kept.add(int(start + low[start:stop].argmin()))
                kept.add(int(start + high[start:stop].argmax()))
    return np.array(sorted(kept))


def smoothed(values: Numbers, width: int) -> Numbers:
    """Moving mean over `width` values, of those that are known; NaN where none is.

    Args:
        values: (N,), NaN where there is no value.
        width: odd.
    """
    known = ~np.isnan(values)
    ones = np.ones(width)
    count = np.convolve(known.astype(float), ones, mode="same")[: len(values)]
    total = np.convolve(np.where(known, values, 0.0), ones, mode="same")[: len(values)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Numbers = np.where(count > 0.5, total / count, np.nan)
    return mean

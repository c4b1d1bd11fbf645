"""Order along a Hilbert curve: what is near on the ground is near in the file."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 2^20 cells around the equator: 38 m.
_LEVELS = 20


def hilbert_order(longitude: ArrayLike, latitude: ArrayLike) -> NDArray[np.int64]:
    """Rows of points in the order in which a Hilbert curve over the globe meets them.

    Args:
        longitude: (N,) degrees, any turn.
        latitude: (N,) degrees.

    Returns:
        (N,) rows; points of one cell of the curve (38 m at the equator) keep their order.
    """
    # Files whose corners lie nowhere have no centre; they are refused when they are embedded.
    x = (np.nan_to_num(np.asarray(longitude, np.float64)) + 180) % 360 / 360
    y = (np.nan_to_num(np.asarray(latitude, np.float64)) + 90) / 180
    return np.argsort(hilbert_index(x, y), kind="stable").astype(np.int64)


def hilbert_index(x: ArrayLike, y: ArrayLike, levels: int = _LEVELS) -> NDArray[np.int64]:
    """Positions along the Hilbert curve that begins at (0, 0) and ends at (1, 0).

    The curve is followed from the square down to its cells (Hilbert 1891, as an automaton): in
    which quarter a point lies gives two bits, and each quarter is the curve again, turned.

    Args:
        x: (N,) 0..1.
        y: (N,) 0..1.
        levels: how often the square is quartered.

    Returns:
        (N,) in [0, 4^levels).
    """
    side = 1 << levels
    u, v = (
        np.clip(np.asarray(value, np.float64) * side, 0, side - 1).astype(np.int64)
        for value in (x, y)
    )
    found = np.zeros(u.shape, np.int64)
    for level in reversed(range(levels)):
        right, upper = u >> level & 1, v >> level & 1
        found = found << 2 | (3 * right ^ upper)
        # The lower left quarter is mirrored at its diagonal, the lower right one at the other.
        flip = (upper == 0) & (right == 1)
        u, v = np.where(flip, side - 1 - u, u), np.where(flip, side - 1 - v, v)
        swap = upper == 0
        u, v = np.where(swap, v, u), np.where(swap, u, v)
    return found

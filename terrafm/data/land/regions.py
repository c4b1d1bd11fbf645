"""Regions of the world: 72 blocks of 30 x 30 degrees, to spread sampling over the Earth."""

import numpy as np
from numpy.typing import NDArray

BLOCK_DEGREES = 30
_ACROSS = 360 // BLOCK_DEGREES
_DOWN = 180 // BLOCK_DEGREES


def region_codes(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The block that holds each place.

    Args:
        latitude: (N,) degrees, -90..90.
        longitude: (N,) degrees; any turn, so that 190 is 170 W.

    Returns:
        (N,) codes 0..71, row-major from the north-west corner (90 N, 180 W). A block holds its
        northern and its western edge; the South Pole belongs to the last row.
    """
    rows = np.clip(np.floor((90.0 - np.asarray(latitude)) / BLOCK_DEGREES), 0, _DOWN - 1)
    # A longitude a rounding error under 180 W turns to exactly 360: the second modulo wraps it.
    eastward = np.mod(np.asarray(longitude) + 180.0, 360.0)
    columns = np.mod(np.floor(eastward / BLOCK_DEGREES), _ACROSS)
    return (rows * _ACROSS + columns).astype(np.int32)


def region_name(code: int) -> str:
    """A block as "60N..30N 0E..30E".

    Args:
        code: 0..71, as `region_codes` gives it.
    """
    row, column = divmod(code, _ACROSS)
    north, west = 90 - BLOCK_DEGREES * row, BLOCK_DEGREES * column - 180
    return (
        f"{_degrees(north, 'NS')}..{_degrees(north - BLOCK_DEGREES, 'NS')} "
        f"{_degrees(west, 'EW')}..{_degrees(west + BLOCK_DEGREES, 'EW')}"
    )


def _degrees(value: int, letters: str) -> str:
    return f"{abs(value)}{letters[0] if value >= 0 else letters[1]}"

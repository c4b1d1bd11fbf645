"""The curve is GeoPandas' curve, and neighbours along it are neighbours."""

import numpy as np
import pytest
from geopandas.tools.hilbert_curve import _encode

from terrafm.embed.hilbert import hilbert_index, hilbert_order


@pytest.mark.parametrize("levels", [1, 2, 3, 5, 16])
def test_positions_are_those_of_geopandas(levels):
    side = 1 << levels
    cells = np.random.default_rng(0).integers(0, side, (500, 2))
    found = hilbert_index(*((cells + 0.5) / side).T, levels)
    expected = _encode(levels, *cells.astype(np.uint32).T)
    np.testing.assert_array_equal(found, expected)


def test_the_curve_meets_every_cell_once_and_jumps_nowhere():
    cells = np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1).reshape(-1, 2)
    positions = hilbert_index(*((cells + 0.5) / 32).T, 5)
    assert sorted(positions) == list(range(1024))
    steps = np.abs(np.diff(cells[np.argsort(positions)], axis=0)).sum(1)
    assert (steps == 1).all()


def test_edges_turns_and_places_that_are_none():
    inside = hilbert_index([0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0])
    assert inside.min() == 0
    assert inside.max() == 4**20 - 1
    # A longitude of 190 is one of -170; of equal places the first row comes first.
    order = hilbert_order([190, -170, np.nan], [10, 10, np.nan])
    assert order.tolist().index(0) + 1 == order.tolist().index(1)

"""Thinned curves keep every peak; means leave out what is not known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from terrafm.report.thinning import picked_rows, smoothed

numbers = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=400)


@given(numbers, st.integers(4, 100))
def test_peaks_and_ends_stay(values, most):
    column = np.array(values)
    rows = picked_rows([column], most)
    assert rows[0] == 0
    assert rows[-1] == len(column) - 1
    assert np.all(np.diff(rows) > 0)
    assert len(rows) <= most + 4
    if np.isfinite(column).any():
        assert np.nanmax(column[rows]) == np.nanmax(column)
        assert np.nanmin(column[rows]) == np.nanmin(column)


def test_a_single_spike_of_any_column_stays():
    one, two = np.zeros(100_000), np.zeros(100_000)
    one[12_345], two[54_321] = 1.0, -1.0
    assert {12_345, 54_321} <= set(picked_rows([one, two], 800).tolist())


@given(numbers, st.sampled_from([3, 5, 11]))
def test_a_mean_stays_within_the_values(values, width):
    column = np.array(values)
    mean = smoothed(column, width)
    assert mean.shape == column.shape
    known = mean[~np.isnan(mean)]
    if len(known):
        assert known.max() <= np.nanmax(column) + 1e-3
        assert known.min() >= np.nanmin(column) - 1e-3


def test_a_mean_of_a_line_is_the_line():
    assert np.allclose(smoothed(np.full(50, 3.0), 7), 3.0)

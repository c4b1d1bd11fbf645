"""Uniformity and alignment against the code that Wang and Isola published with their paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terrafm.eval.geometry import alignment, uniformity


def unit_rows(count, width, seed):
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(2, 700), st.integers(2, 9), st.integers(0, 99))
def test_they_agree_with_the_published_code(count, width, seed):
    x, y = unit_rows(count, width, seed), unit_rows(count, width, seed + 1000)
    published = torch.pdist(torch.from_numpy(x).double(), p=2).pow(2).mul(-2).exp().mean().log()
    assert uniformity(x) == pytest.approx(float(published), abs=1e-5)
    published = (torch.from_numpy(x) - torch.from_numpy(y)).norm(p=2, dim=1).pow(2).mean()
    assert alignment(x, y) == pytest.approx(float(published), rel=1e-5)


def test_the_ends_of_their_scales():
    point = np.repeat(unit_rows(1, 8, 0), 40, axis=0)
    assert uniformity(point) == pytest.approx(0.0, abs=1e-6)
    assert alignment(point, point) == 0.0
    assert alignment(point, -point) == pytest.approx(4.0, abs=1e-5)
    # Evenly over a sphere of many dimensions ||x - y||^2 is 2.
    assert uniformity(unit_rows(600, 2000, 0)) == pytest.approx(-4.0, abs=0.02)


def test_what_has_no_value():
    broken = unit_rows(5, 4, 0)
    broken[2, 1] = math.nan
    assert uniformity(broken) is None
    assert alignment(broken, unit_rows(5, 4, 1)) is None
    assert uniformity(unit_rows(1, 4, 0)) is None
    assert alignment(broken[:0], broken[:0]) is None

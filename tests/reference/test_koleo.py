"""KoLeo against one row and one neighbour at a time, in float64."""

import math

import numpy as np
import pytest
import torch

from terrafm.losses import koleo_loss


def naive(features, weight):
    points = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = []
    for i in range(len(points)):
        others = [
            np.linalg.norm(points[i] - points[j])
            for j in range(len(points))
            if j != i and weight[j] > 0
        ]
        values.append(-math.log(min(others)) if weight[i] > 0 and others else 0.0)
    return values


@pytest.mark.parametrize("weight", [(1.0,) * 5, (1, 0, 1, 0.5, 1), (0, 0, 1, 0, 0), (0,) * 5])
def test_every_row_is_minus_the_logarithm_of_its_nearest_distance(weight):
    features = np.random.default_rng(0).normal(size=(5, 4))
    features[4] = 3 * features[0] + 0.1  # near in direction, not in length
    found = koleo_loss(torch.tensor(features, dtype=torch.float32), torch.tensor(weight).float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, naive(features, weight), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_the_derivative():
    features = np.random.default_rng(1).normal(size=(6, 3))
    weight = torch.tensor([1.0, 1, 0, 1, 1, 1])
    single = torch.tensor(features, dtype=torch.float32, requires_grad=True)
    (koleo_loss(single, weight) * weight).sum().backward()
    step = 1e-6
    for i, j in np.ndindex(*features.shape):
        moved = [features.copy(), features.copy()]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        up, down = (np.dot(naive(m, weight.numpy()), weight.numpy()) for m in moved)
        slope = (up - down) / (2 * step)
        assert single.grad[i, j].item() == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_equal_rows_have_a_finite_gradient_and_autocast_changes_nothing():
    features = torch.ones(3, 4, requires_grad=True)
    koleo_loss(features, torch.ones(3)).sum().backward()
    assert torch.isfinite(features.grad).all()
    rows = torch.randn(4, 8)
    plain = koleo_loss(rows, torch.ones(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(koleo_loss(rows, torch.ones(4)), plain)

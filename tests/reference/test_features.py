"""The loss of distillation against one number at a time, in float64."""

import numpy as np
import pytest
import torch

from terrafm.losses import feature_loss

TOKENS, WIDTH = 5, 7


def naive(student, teacher):
    return [
        sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        for s, t in zip(student, teacher, strict=True)
    ]


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(2, TOKENS, WIDTH))


def single(array):
    return torch.tensor(array, dtype=torch.float32)


def test_each_token_has_its_mean_squared_error(tokens):
    student, teacher = tokens
    found = feature_loss(single(student), single(teacher))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, naive(student, teacher), rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feature_loss(single(student), single(teacher)), found)


def test_the_gradient_is_the_derivative_and_the_teacher_gets_none(tokens):
    student, teacher = tokens
    weight = np.linspace(0.5, 1.5, TOKENS)
    ours, theirs = single(student).requires_grad_(), single(teacher).requires_grad_()
    (feature_loss(ours, theirs) * single(weight)).sum().backward()
    assert theirs.grad is None
    step = 1e-6
    for i, k in np.ndindex(*student.shape):
        moved = [student.copy(), student.copy()]
        moved[0][i, k] += step
        moved[1][i, k] -= step
        up, down = (np.dot(naive(m, teacher), weight) for m in moved)
        assert ours.grad[i, k].item() == pytest.approx((up - down) / (2 * step), abs=1e-5)

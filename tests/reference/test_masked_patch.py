"""The loss of masked patches, its center and its gradient, one number at a time in float64."""

import math

import numpy as np
import pytest
import torch

from terrafm.losses import DINOLoss, MaskedPatchLoss

PROTOTYPES, PATCHES = 6, 5
STUDENT_TEMP, TEACHER_TEMP, MOMENTUM = 0.1, 0.05, 0.9


def softmax(values):
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def naive_loss(student, teacher, center):
    """(m,) cross-entropies of single positions."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        p = softmax([value / STUDENT_TEMP for value in s])
        q = softmax([(value - c) / TEACHER_TEMP for value, c in zip(t, center, strict=True)])
        losses.append(-sum(a * math.log(b) for a, b in zip(q, p, strict=True)))
    return losses


def naive_sinkhorn(teacher, iterations=3):
    """Matrix scaling as in SwAV: each prototype, then each row, gets the same mass."""
    q = np.exp(teacher / TEACHER_TEMP)
    for _ in range(iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for row in q:
            row /= row.sum() * len(q)
    return q * len(q)


def single(array):
    return torch.tensor(array, dtype=torch.float32)


@pytest.fixture
def logits():
    student, teacher = np.random.default_rng(0).uniform(-1, 1, (2, PATCHES, PROTOTYPES))
    return student, teacher


@pytest.fixture
def criterion():
    return MaskedPatchLoss(PROTOTYPES, STUDENT_TEMP, MOMENTUM)


def test_the_loss_of_every_patch(logits, criterion):
    student, teacher = logits
    center = np.linspace(-0.3, 0.2, PROTOTYPES)
    criterion.center.copy_(single(center))
    found = criterion(single(student), single(teacher), TEACHER_TEMP)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, naive_loss(student, teacher, center), rtol=1e-5)
    # A center that is given is the one that is used.
    found = criterion(single(student), single(teacher), TEACHER_TEMP, torch.zeros(PROTOTYPES))
    np.testing.assert_allclose(found, naive_loss(student, teacher, [0] * PROTOTYPES), rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = criterion(single(student), single(teacher), TEACHER_TEMP, torch.zeros(PROTOTYPES))
    assert torch.equal(inside, found)


def test_the_gradient_is_the_derivative_and_the_teacher_gets_none(logits, criterion):
    student, teacher = logits
    weight = np.linspace(0.5, 1.5, PATCHES)
    ours, theirs = single(student).requires_grad_(), single(teacher).requires_grad_()
    (criterion(ours, theirs, TEACHER_TEMP) * single(weight)).sum().backward()
    assert theirs.grad is None
    step = 1e-6
    for i, k in np.ndindex(*student.shape):
        moved = [student.copy(), student.copy()]
        moved[0][i, k] += step
        moved[1][i, k] -= step
        up, down = (np.dot(naive_loss(m, teacher, [0] * PROTOTYPES), weight) for m in moved)
        assert ours.grad[i, k].item() == pytest.approx((up - down) / (2 * step), abs=2e-5)


def test_the_center_is_the_average_over_masked_patches_of_samples_that_count(criterion):
    """Steps of unequal micro-batches, one without a masked patch, one of padding alone."""
    generator = np.random.default_rng(1)
    expected = [0.0] * PROTOTYPES
    for sizes in ((3, 0, 2), (1,), (0,), (4,)):
        rows = []
        for size in sizes:
            teacher = generator.uniform(-1, 1, (size, PROTOTYPES))
            weight = (generator.random(size) < 0.7).astype(float)
            if sizes == (4,):
                weight[:] = 0
            criterion.accumulate(single(teacher)[None], None, single(weight))
            rows += [row for row, on in zip(teacher, weight, strict=True) if on]
        criterion.update_centers()
        if rows:
            mean = [sum(row[k] for row in rows) / len(rows) for k in range(PROTOTYPES)]
            expected = [
                MOMENTUM * c + (1 - MOMENTUM) * m for c, m in zip(expected, mean, strict=True)
            ]
        np.testing.assert_allclose(criterion.center, expected, atol=1e-7)
    assert any(expected)


def test_sinkhorn_knopp_is_over_all_masked_patches_alike(logits, criterion):
    student, teacher = logits
    parts = [single(teacher)[None, :3], single(teacher)[None, 3:3], single(teacher)[None, 3:]]
    weights = [torch.ones(part.shape[1]) for part in parts]
    center = criterion.batch_center(parts, TEACHER_TEMP, [None] * 3, weights)
    q = naive_sinkhorn(teacher)
    log_p = np.log([softmax(row / STUDENT_TEMP) for row in student])
    found = criterion(single(student), single(teacher), TEACHER_TEMP, center)
    np.testing.assert_allclose(found, -(q * log_p).sum(-1), rtol=1e-4)
    nothing = criterion.batch_center(parts[1:2], TEACHER_TEMP, [None], weights[1:2])
    assert torch.equal(nothing, torch.zeros(PROTOTYPES))


def test_no_masked_patch_is_no_loss_and_a_zero_gradient(criterion):
    nothing = torch.zeros(0, PROTOTYPES, requires_grad=True)
    criterion(nothing, nothing.detach(), TEACHER_TEMP).sum().backward()
    assert nothing.grad.shape == (0, PROTOTYPES)


def test_its_center_is_saved_beside_the_others_and_only_where_it_is_used():
    plain, masked = DINOLoss(PROTOTYPES), DINOLoss(PROTOTYPES, masked_patch=True)
    assert plain.masked_patch is None
    assert set(masked.state_dict()) - set(plain.state_dict()) == {"masked_patch.center"}
    masked.masked_patch.center.fill_(3.0)
    other = DINOLoss(PROTOTYPES, masked_patch=True)
    other.load_state_dict(masked.state_dict())
    assert (other.masked_patch.center == 3.0).all()

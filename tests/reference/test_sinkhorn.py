"""Sinkhorn-Knopp centering against the matrix scaling of DINOv2, in float64, one loop a sum."""

import numpy as np
import pytest
import torch

from terrafm.losses import DINOLoss
from terrafm.losses.sinkhorn import ITERATIONS, sinkhorn_center

PROTOTYPES, SAMPLES, VIEWS = 7, 6, 2
TEMPERATURE = 0.07


def naive_targets(logits, temperature, mass, iterations=ITERATIONS):
    """DINOv2's `sinkhorn_knopp_teacher`, with rows that need not weigh the same.

    logits (N, K), mass (N,) of sum 1. First each prototype to 1 / K of the mass, then each row to
    its own, `iterations` times; at last each row is made a distribution.
    """
    rows, prototypes = logits.shape
    q = np.exp(logits / temperature) * mass[:, None]
    q /= q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] *= 1 / prototypes / q[:, k].sum()
        for b in range(rows):
            if mass[b]:
                q[b] *= mass[b] / q[b].sum()
    return q / mass[:, None]


def targets(logits, temperature, center):
    return ((torch.as_tensor(logits) - center.double()) / temperature).softmax(-1).numpy()


@pytest.fixture
def logits():
    return np.random.default_rng(0).uniform(-1, 1, (VIEWS, SAMPLES, PROTOTYPES))


@pytest.mark.parametrize("temperature", [0.04, 0.07, 0.5])
@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_equal_rows_give_dinov2s_targets(logits, temperature, iterations):
    single = torch.tensor(logits, dtype=torch.float32)
    center = sinkhorn_center([single], temperature, [torch.ones(SAMPLES)], iterations)
    rows = logits.reshape(-1, PROTOTYPES)
    mass = np.full(len(rows), 1 / len(rows))
    expected = naive_targets(rows, temperature, mass, iterations)
    assert center.dtype == torch.float32
    np.testing.assert_allclose(
        targets(rows, temperature, center), expected, atol=2e-5, err_msg="targets"
    )


def masses_of_dual_centering(alpha, high, weight):
    """alpha / N for everyone, (1 - alpha) / N_h more for a high-frequency class."""
    if not (weight * high).sum():
        alpha = 1.0
    mass = alpha * weight / weight.sum()
    return mass + (1 - alpha) * weight * high / max((weight * high).sum(), 1e-300)


@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("high", [(0, 0, 0, 0, 0, 0), (1, 0, 0, 1, 0, 1), (1,) * 6])
@pytest.mark.parametrize("weight", [(1.0,) * 6, (1.0, 1.0, 0.0, 1.0, 0.5, 1.0)])
def test_dual_centering_gives_the_samples_their_mass(logits, alpha, high, weight):
    high, weight = np.array(high, dtype=bool), np.array(weight)
    criterion = DINOLoss(PROTOTYPES, alpha=alpha, centering="sinkhorn")
    single = torch.tensor(logits, dtype=torch.float32)
    center = criterion.batch_center(
        [single],
        TEMPERATURE,
        [torch.tensor(high)],
        [torch.tensor(weight, dtype=torch.float32)],
    )
    there = weight > 0
    mass = np.tile(masses_of_dual_centering(alpha, high, weight)[there] / VIEWS, VIEWS)
    rows = logits[:, there].reshape(-1, PROTOTYPES)
    expected = naive_targets(rows, TEMPERATURE, mass)
    np.testing.assert_allclose(targets(rows, TEMPERATURE, center), expected, atol=2e-5)


def test_the_loss_is_the_cross_entropy_to_these_targets(logits):
    student = np.random.default_rng(1).uniform(-1, 1, (3, SAMPLES, PROTOTYPES))
    mass = np.full(VIEWS * SAMPLES, 1 / (VIEWS * SAMPLES))
    q = naive_targets(logits.reshape(-1, PROTOTYPES), TEMPERATURE, mass).reshape(logits.shape)
    log_p = torch.tensor(student / 0.1).log_softmax(-1).numpy()
    pairs = [-(q[g] * log_p[v]).sum(-1).mean() for g in range(2) for v in range(3) if g != v]
    criterion = DINOLoss(PROTOTYPES, student_temp=0.1, alpha=1.0, centering="sinkhorn")
    # Centers that would change the loss, were they subtracted.
    criterion.center.copy_(torch.linspace(-1, 1, PROTOTYPES))
    loss = criterion(
        torch.tensor(student, dtype=torch.float32),
        torch.tensor(logits, dtype=torch.float32),
        TEMPERATURE,
    )
    assert loss.item() == pytest.approx(np.mean(pairs), rel=1e-5)
    assert not torch.equal(criterion.center, torch.linspace(-1, 1, PROTOTYPES))


def test_a_shift_of_the_prototypes_cancels(logits):
    """Which is why neither c nor c_h could have an effect, subtracted or not."""
    single = torch.tensor(logits, dtype=torch.float32)
    shift = torch.linspace(-0.5, 0.5, PROTOTYPES)
    weight = [torch.ones(SAMPLES)]
    plain = sinkhorn_center([single], TEMPERATURE, weight)
    moved = sinkhorn_center([single + shift], TEMPERATURE, weight)
    torch.testing.assert_close(moved, plain + shift, atol=1e-6, rtol=1e-5)


def test_every_prototype_is_used_alike_in_the_end(logits):
    single = torch.tensor(logits, dtype=torch.float32)
    mass = torch.tensor([4.0, 1, 1, 1, 1, 1])
    center = sinkhorn_center([single], TEMPERATURE, [mass], iterations=200)
    q = targets(logits, TEMPERATURE, center)
    used = (q * (mass / mass.sum()).numpy()[None, :, None] / VIEWS).sum((0, 1))
    np.testing.assert_allclose(used, 1 / PROTOTYPES, atol=1e-5)


def test_micro_batches_of_any_size_give_the_center_of_the_whole(logits):
    single = torch.tensor(logits, dtype=torch.float32)
    whole = sinkhorn_center([single], TEMPERATURE, [torch.ones(SAMPLES)])
    parts = [single[:, :1], single[:, 1:4], single[:, 4:]]
    found = sinkhorn_center(parts, TEMPERATURE, [torch.ones(p.shape[1]) for p in parts])
    torch.testing.assert_close(found, whole, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_no_other(logits, value):
    single = torch.tensor(logits, dtype=torch.float32)
    expected = sinkhorn_center([single[:, 1:]], TEMPERATURE, [torch.ones(SAMPLES - 1)])
    single[:, 0, 3] = value
    found = sinkhorn_center([single], TEMPERATURE, [torch.ones(SAMPLES)])
    torch.testing.assert_close(found, expected)


def test_extreme_logits_and_no_mass_stay_finite(logits):
    extreme = torch.tensor(np.sign(logits) * 1e3, dtype=torch.float32)
    assert torch.isfinite(sinkhorn_center([extreme], 0.01, [torch.ones(SAMPLES)])).all()
    nothing = sinkhorn_center([extreme], TEMPERATURE, [torch.zeros(SAMPLES)])
    assert torch.equal(nothing, torch.zeros(PROTOTYPES))

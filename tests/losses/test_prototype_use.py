"""How many prototypes the teacher uses, against plain sums in float64."""

import math

import numpy as np
import pytest
import torch

from terrafm.losses import DINOLoss

PROTOTYPES = 13


def softmax(rows):
    rows = np.exp(rows - rows.max(-1, keepdims=True))
    return rows / rows.sum(-1, keepdims=True)


def test_it_is_the_perplexity_of_the_moving_mean():
    torch.manual_seed(0)
    criterion = DINOLoss(PROTOTYPES, alpha=1.0)
    assert criterion.use.perplexity() is None
    share, center = None, np.zeros(PROTOTYPES)
    for step in range(4):
        teacher, student = torch.randn(2, 6, PROTOTYPES), torch.randn(3, 6, PROTOTYPES)
        weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
        criterion(student, teacher, 0.5, sample_weight=weight)
        rows = teacher.double().numpy()[:, [0, 1, 3, 4, 5]].reshape(-1, PROTOTYPES)
        mean = softmax((rows - center) / 0.5).mean(0)
        share = mean if step == 0 else 0.9 * share + 0.1 * mean
        center = 0.9 * center + 0.1 * rows.mean(0)
        expected = math.exp(-(share * np.log(share)).sum())
        assert criterion.use.perplexity() == pytest.approx(expected, rel=1e-5)
    assert criterion.use.share.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("used", [1, 4, PROTOTYPES])
def test_sure_teachers_use_as_many_prototypes_as_their_images_fall_onto(used):
    # Entropy per sample is 0 in every case: only the mean tells them apart.
    teacher = torch.full((2, 4 * PROTOTYPES, PROTOTYPES), -100.0)
    for row in range(4 * PROTOTYPES):
        teacher[:, row, row % used] = 100.0
    criterion = DINOLoss(PROTOTYPES, alpha=1.0)
    student = torch.zeros(3, 4 * PROTOTYPES, PROTOTYPES)
    _, entropy, _, q = criterion.per_sample(student, teacher, 0.04)
    criterion.accumulate(teacher, None, None, q)
    criterion.update_centers()
    assert float(entropy.max()) == pytest.approx(0.0, abs=1e-6)
    assert criterion.use.perplexity() == pytest.approx(used, rel=1e-5)


def test_micro_batches_add_up_and_a_discarded_step_leaves_no_trace():
    torch.manual_seed(1)
    teacher, student = torch.randn(2, 8, PROTOTYPES), torch.randn(3, 8, PROTOTYPES)
    whole, parts = (DINOLoss(PROTOTYPES, alpha=1.0) for _ in range(2))
    whole(student, teacher, 0.1)
    for rows in (slice(0, 1), slice(1, 6), slice(6, 8)):
        parts(student[:, rows], teacher[:, rows], 0.1, update_centers=False)
    parts.update_centers()
    torch.testing.assert_close(parts.use.share, whole.use.share, atol=1e-7, rtol=1e-6)
    before = parts.use.share.clone()
    parts(student, teacher * 9, 0.1, update_centers=False)
    parts.discard_pending()
    parts.update_centers()
    torch.testing.assert_close(parts.use.share, before, rtol=0, atol=0)


def test_it_is_no_part_of_a_checkpoint():
    assert set(DINOLoss(PROTOTYPES).state_dict()) == {"center", "center_high_frequency"}

"""The loss view by view against the loss over all views at once."""

import sys
from pathlib import Path

import pytest
import torch

from terrafm.losses import DINOLoss, cross_entropy
from terrafm.losses.cross_entropy import pairwise_cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from harness.dense_loss import DenseDINOLoss

SAMPLES, PROTOTYPES = 5, 257


def logits(views, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(views, SAMPLES, PROTOTYPES, generator=generator) * 2 - 1


def run(kind, views, global_views, seed=0, **options):
    student = logits(views, seed).requires_grad_()
    criterion = kind(PROTOTYPES, student_temp=0.1, alpha=0.8)
    criterion.center.copy_(logits(1, 3)[0, 0])
    weight = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    # As in a step, they are no leaf.
    given = student * 1.0
    terms = criterion.per_sample(given, logits(global_views, seed + 1), 0.05, **options)
    (terms[0] * weight).sum().backward()
    return terms, student.grad


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize(("views", "global_views"), [(2, 2), (10, 2), (3, 1), (4, 3), (3, 3)])
def test_terms_and_gradient_are_those_of_all_views_at_once(
    views, global_views, at_once, overwrite, monkeypatch
):
    monkeypatch.setattr(cross_entropy, "_MOST_BYTES", at_once * SAMPLES * PROTOTYPES * 4)
    found, gradient = run(DINOLoss, views, global_views, overwrite=overwrite)
    expected, expected_gradient = run(DenseDINOLoss, views, global_views)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert not gradient[:, 1].any()


def test_the_gradient_is_the_derivative():
    student = torch.rand(4, 2, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 2, 7, dtype=torch.float64).softmax(-1)
    loss = lambda s: pairwise_cross_entropy(s, teacher, 0.3)[0]  # noqa: E731
    assert torch.autograd.gradcheck(loss, student)


def test_nothing_is_learned_from_the_entropy():
    student = logits(3, 0).requires_grad_()
    loss, entropy = pairwise_cross_entropy(student, logits(2, 1).softmax(-1), 0.1)
    assert loss.requires_grad
    assert not entropy.requires_grad


def test_logits_that_are_given_away_are_differentiated_once():
    student = logits(3, 0).requires_grad_()
    loss = pairwise_cross_entropy(student * 1.0, logits(2, 1).softmax(-1), 0.1, True)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_gradient_the_logits_are_only_read():
    student = logits(3, 0)
    before = student.clone()
    pairwise_cross_entropy(student, logits(2, 1).softmax(-1), 0.1)
    assert torch.equal(student, before)


def test_less_is_kept_for_the_backward_pass():
    """Of logits that are given away, nothing but their own memory."""
    kept = {}
    for kind in (DINOLoss, DenseDINOLoss):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        student = logits(10, 0).requires_grad_() * 1.0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kind(PROTOTYPES).per_sample(student, logits(2, 1), 0.05, overwrite=True)
        # The logits exist anyhow.
        storages.pop(student.untyped_storage().data_ptr(), None)
        kept[kind] = sum(storages.values())
    one_view = 4 * SAMPLES * PROTOTYPES
    assert kept[DINOLoss] == 0
    assert kept[DenseDINOLoss] > 10 * one_view

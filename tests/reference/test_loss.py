"""The loss and both centers against a per-sample float64 reference written from the method."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terrafm.losses import DINOLoss


def softmax(logits):
    exponentials = [math.exp(v - max(logits)) for v in logits]
    return [e / sum(exponentials) for e in exponentials]


def naive_loss(student, teacher, c, c_h, *, alpha, student_temp, teacher_temp, weight):
    """sum_b w_b l_b / sum_b w_b; l_b averages -sum_k q_k log p_k over the pairs g != v."""
    views, samples, prototypes = student.shape
    total = 0.0
    for b in range(samples):
        pairs = []
        for g, v in itertools.product(range(len(teacher)), range(views)):
            if g == v:
                continue
            centered = [
                (teacher[g, b, k] - alpha * c[k] - (1 - alpha) * c_h[k]) / teacher_temp
                for k in range(prototypes)
            ]
            q = softmax(centered)
            p = softmax([student[v, b, k] / student_temp for k in range(prototypes)])
            pairs.append(-sum(q[k] * math.log(p[k]) for k in range(prototypes)))
        total += weight[b] * sum(pairs) / len(pairs)
    return total / sum(weight)


def naive_center(center, teacher, chosen, momentum, weight):
    """EMA of the mean over the chosen samples' teacher logits; unchanged without any."""
    total, count = np.zeros(teacher.shape[2]), 0.0
    for b in np.flatnonzero(chosen):
        for g in range(len(teacher)):
            total += weight[b] * teacher[g, b]
            count += weight[b]
    return center if count == 0 else momentum * center + (1 - momentum) * total / count


MASKS = {"none": 0.0, "some": 0.5, "all": 1.0}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("views", "global_views"), [(2, 2), (5, 2), (3, 1), (4, 3)])
@pytest.mark.parametrize(
    ("alpha", "momentum", "student_temp", "teacher_temp"),
    [(0.8, 0.9, 0.1, 0.04), (1.0, 0.9, 0.1, 0.06), (0.0, 0.5, 0.2, 0.1), (0.3, 0.0, 0.05, 0.07)],
)
def test_loss_and_centers_follow_the_equations(
    alpha, momentum, student_temp, teacher_temp, views, global_views, mask, weighted
):
    random = np.random.default_rng([views, global_views, len(mask), weighted, int(10 * alpha)])
    samples, prototypes = 5, 17
    criterion = DINOLoss(prototypes, student_temp, alpha, momentum)
    c, c_h = np.zeros(prototypes), np.zeros(prototypes)
    for _ in range(3):  # the second and third call use centers that are not zero
        student = random.uniform(-1, 1, (views, samples, prototypes))
        teacher = random.uniform(-1, 1, (global_views, samples, prototypes))
        high = np.arange(samples) < MASKS[mask] * samples
        weight = np.array([1, 0, 1, 0.5, 1]) if weighted else np.ones(samples)
        loss = criterion(
            torch.tensor(student, dtype=torch.float32),
            torch.tensor(teacher, dtype=torch.float32),
            teacher_temp=teacher_temp,
            high_frequency=torch.tensor(high),
            update_centers=True,
            sample_weight=torch.tensor(weight, dtype=torch.float32) if weighted else None,
        )
        expected = naive_loss(
            student,
            teacher,
            c,
            c_h,
            alpha=alpha,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            weight=weight,
        )
        c = naive_center(c, teacher, np.ones(samples, dtype=bool), momentum, weight)
        c_h = naive_center(c_h, teacher, high, momentum, weight)
        assert loss.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
        np.testing.assert_allclose(criterion.center, c, atol=1e-6)
        np.testing.assert_allclose(criterion.center_high_frequency, c_h, atol=1e-6)
        if mask == "none":
            assert (criterion.center_high_frequency == 0).all()


def test_the_gradient_is_that_of_the_equations():
    torch.manual_seed(0)
    student = torch.randn(4, 3, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 11, dtype=torch.float64)
    q = (teacher / 0.05).softmax(-1)
    log_p = (student / 0.1).log_softmax(-1)
    pairs = [-(q[g] * log_p[v]).sum(-1) for g in range(2) for v in range(4) if g != v]
    (expected,) = torch.autograd.grad(torch.stack(pairs).mean(), student)
    single = student.detach().float().requires_grad_()
    loss = DINOLoss(11, alpha=1.0)(single, teacher.float(), teacher_temp=0.05)
    (gradient,) = torch.autograd.grad(loss, single)
    torch.testing.assert_close(gradient.double(), expected, atol=1e-6, rtol=1e-5)


def test_alpha_one_is_dino():
    """The formula of DINO's paper: chunks, skip of the same crop, mean over samples."""
    torch.manual_seed(1)
    crops, samples, prototypes, teacher_temp = 6, 8, 32, 0.05
    criterion = DINOLoss(prototypes, student_temp=0.1, alpha=1.0, center_momentum=0.9)
    center = torch.zeros(1, prototypes)
    for _ in range(4):
        student_output = torch.randn(crops * samples, prototypes)
        teacher_output = torch.randn(2 * samples, prototypes)
        student_out = (student_output / 0.1).chunk(crops)
        teacher_out = F.softmax((teacher_output - center) / teacher_temp, dim=-1).chunk(2)
        total, terms = torch.zeros(()), 0
        for iq, q in enumerate(teacher_out):
            for v in range(crops):
                if v == iq:
                    continue
                total += torch.sum(-q * F.log_softmax(student_out[v], dim=-1), dim=-1).mean()
                terms += 1
        center = center * 0.9 + teacher_output.mean(0, keepdim=True) * 0.1
        loss = criterion(
            student_output.view(crops, samples, prototypes),
            teacher_output.view(2, samples, prototypes),
            teacher_temp=teacher_temp,
            high_frequency=torch.rand(samples) < 0.5,  # must not matter
        )
        torch.testing.assert_close(loss, total / terms, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(criterion.center, center[0], atol=1e-6, rtol=1e-5)


def test_entropies_are_in_nats_and_per_sample():
    torch.manual_seed(2)
    student, teacher = torch.randn(3, 4, 9), torch.randn(2, 4, 9)
    criterion = DINOLoss(9, student_temp=0.2)
    _, teacher_entropy, student_entropy, _ = criterion.per_sample(student, teacher, 0.5)
    p = (student.double() / 0.2).softmax(-1)
    q = (teacher.double() / 0.5).softmax(-1)
    expected_student = torch.distributions.Categorical(probs=p).entropy().mean(0)
    expected_teacher = torch.distributions.Categorical(probs=q).entropy().mean(0)
    torch.testing.assert_close(student_entropy.double(), expected_student, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher_entropy.double(), expected_teacher, atol=1e-5, rtol=1e-5)

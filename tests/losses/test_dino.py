"""The interface of the loss: precision, wrong use, state."""

import pytest
import torch

from terrafm.losses import DINOLoss


def test_everything_is_float32_outside_autocast():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 64).bfloat16(), torch.randn(2, 4, 64).bfloat16()
    high = torch.tensor([True, False, True, False])
    plain, inside = DINOLoss(64), DINOLoss(64)
    expected = plain(student.float(), teacher.float(), 0.04, high)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = inside(student, teacher, 0.04, high)
    assert loss.dtype == inside.center.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(inside.center, plain.center, rtol=0, atol=0)


def test_the_teacher_gets_no_gradient():
    student = torch.randn(3, 2, 8, requires_grad=True)
    teacher = torch.randn(2, 2, 8, requires_grad=True)
    DINOLoss(8)(student, teacher, 0.04, torch.tensor([True, False])).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_extreme_logits_stay_finite():
    student = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]], requires_grad=True)
    loss = DINOLoss(3, alpha=1.0)(student, student.detach(), 0.04)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((3, 2, 8), (2, 2, 9)),
        ((3, 2, 9), (2, 2, 9)),
        ((3, 2, 8), (2, 3, 8)),
        ((1, 2, 8), (2, 2, 8)),
        ((1, 2, 8), (1, 2, 8)),
        ((2, 8), (2, 8)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"logits|view"):
        DINOLoss(8, alpha=1.0)(torch.zeros(student), torch.zeros(teacher), 0.04)


def test_wrong_settings_and_masks_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        DINOLoss(8, alpha=1.5)
    with pytest.raises(ValueError, match="student_temp"):
        DINOLoss(8, student_temp=0.0)
    views = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match="high_frequency is needed"):
        DINOLoss(8)(views, views, 0.04)
    with pytest.raises(ValueError, match=r"high_frequency must be \(3,\)"):
        DINOLoss(8)(views, views, 0.04, torch.tensor([True]))


def test_centers_are_its_only_state_and_survive_a_round_trip():
    criterion, other = DINOLoss(8), DINOLoss(8)
    logits = torch.randn(2, 3, 8)
    criterion(logits, logits, 0.04, torch.tensor([True, False, False]))
    assert set(criterion.state_dict()) == {"center", "center_high_frequency"}
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.center, criterion.center)
    assert torch.equal(other.center_high_frequency, criterion.center_high_frequency)

import numpy as np
import pytest

from terrafm.config import LossConfig, OptimConfig
from terrafm.train.step.schedules import Schedules


def build(total=1000, per_epoch=20.0, batch=512, **optim):
    return Schedules(
        OptimConfig(**optim),
        LossConfig(),
        total_steps=total,
        steps_per_epoch=per_epoch,
        global_batch=batch,
    )


def dino_cosine(start, final, total, warmup=0):
    """The list DINO's `cosine_scheduler` builds, written from its definition."""
    ramp = np.linspace(0, start, warmup, endpoint=False)
    i = np.arange(total - warmup)
    return np.concatenate([ramp, final + 0.5 * (start - final) * (1 + np.cos(np.pi * i / len(i)))])


def test_learning_rate_decay_and_momentum_follow_dino():
    schedules = build()
    lr = dino_cosine(5e-4 * 512 / 256, 1e-6, 1000, warmup=100)
    decay = dino_cosine(0.04, 0.4, 1000)
    momentum = dino_cosine(0.996, 1.0, 1000)
    for step in range(1000):
        at = schedules.at(step)
        assert at.lr == pytest.approx(lr[step], rel=1e-9)
        assert at.weight_decay == pytest.approx(decay[step], rel=1e-9)
        assert at.teacher_momentum == pytest.approx(momentum[step], rel=1e-12)


def test_the_rate_grows_with_the_batch_or_its_square_root():
    assert build(batch=1024).peak_lr == pytest.approx(2e-3)
    assert build(batch=1024, lr_scaling="sqrt").peak_lr == pytest.approx(1e-3)


def test_teacher_temperature_rises_linearly_over_the_warm_up():
    schedules = build()
    assert schedules.warmup_steps == 100
    assert schedules.at(0).teacher_temp == pytest.approx(0.04)
    assert schedules.at(50).teacher_temp == pytest.approx(0.05)
    assert schedules.at(100).teacher_temp == pytest.approx(0.06)
    assert schedules.at(999).teacher_temp == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("total", "per_epoch", "warmup", "frozen"),
    [
        (1000, 20.0, 100, 20),  # 10 epochs are 200 steps: a tenth of the run is less
        (10000, 20.0, 200, 20),  # 10 epochs are less than a tenth
        (20, 0.5, 2, 0),  # an epoch shorter than a batch freezes nothing
        (5, 100.0, 0, 0),  # a tenth of 5 steps is no step
        (1, 1.0, 0, 0),
    ],
)
def test_warm_up_and_freezing_take_the_smaller_of_epochs_and_share(
    total, per_epoch, warmup, frozen
):
    schedules = build(total, per_epoch)
    assert (schedules.warmup_steps, schedules.frozen_steps) == (warmup, frozen)
    flags = [schedules.at(step).freeze_prototypes for step in range(total)]
    assert flags == [step < frozen for step in range(total)]


def test_learning_rate_starts_at_zero_and_ends_near_the_minimum():
    schedules = build(total=10000)
    assert schedules.at(0).lr == 0.0
    assert schedules.at(schedules.warmup_steps).lr == pytest.approx(1e-3)
    assert schedules.at(9999).lr == pytest.approx(1e-6, rel=1e-3)

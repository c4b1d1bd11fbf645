"""Alarms ring on collapsed curves and on no healthy one; the effective rank is what it says."""

import json
import math
from pathlib import Path

import pytest
import torch

from terrafm.config import LossConfig, OptimConfig
from terrafm.train.metrics.alerts import Alerts
from terrafm.train.step.collapse import ALARMS, CollapseAlarm, FeatureSample, effective_rank
from terrafm.train.step.schedules import Schedules

GOLDEN = Path(__file__).parents[1] / "data" / "golden_curve.json"
PROTOTYPES = 65536
UNIFORM = math.log(PROTOTYPES)


def healthy(step):
    """The loss falls from ln K, the teacher sharpens, the rank dips in the warm-up and rises."""
    progress = min(1.0, step / 1000)
    wave = 0.03 * math.sin(step)
    return {
        "step": step,
        "loss": UNIFORM * (0.95 - 0.6 * progress + wave / 3),
        "teacher_entropy": UNIFORM * (0.8 - 0.5 * progress + wave),
        "effective_rank": (12 + 20 * progress) * (1 + wave) if step > 40 else 3.0,
        # Falls to a tenth of all while the teacher sharpens.
        "prototype_perplexity": PROTOTYPES * (1 - 0.9 * progress) * (1 + wave),
    }


def rung(alarm, lines):
    """Step -> alarms, of the lines that have any."""
    found = {}
    for line in lines:
        if names := alarm.judge(line).get("alarm"):
            found[line["step"]] = names
    return found


def test_a_healthy_run_is_left_alone():
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=50)
    assert rung(alarm, map(healthy, range(1, 1500))) == {}


def test_the_golden_curve_is_left_alone_even_without_a_warm_up():
    golden = json.loads(GOLDEN.read_text())
    alarm = CollapseAlarm(64, warmup_steps=0)
    assert rung(alarm, [line | {"step": i + 1} for i, line in enumerate(golden)]) == {}


@pytest.mark.parametrize(
    ("name", "collapsed"),
    [
        ("uniform_teacher", {"teacher_entropy": 0.999 * UNIFORM}),
        ("one_prototype", {"teacher_entropy": 0.001, "prototype_perplexity": None}),
        (
            "one_prototype falling_perplexity",
            {"teacher_entropy": 0.01, "prototype_perplexity": 1.1},
        ),
        ("loss_at_chance", {"loss": 1.001 * UNIFORM}),
        (
            "few_prototypes falling_perplexity",
            {"teacher_entropy": 0.05 * UNIFORM, "prototype_perplexity": 15.0},
        ),
        ("falling_perplexity", {"prototype_perplexity": 900.0}),
        ("falling_rank", {"effective_rank": 4.0}),
        ("falling_rank", {"effective_rank": 10.5}),
        ("falling_rank", {"effective_rank": 1.1}),
    ],
)
def test_each_collapse_rings_its_own_alarm(name, collapsed):
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=50)
    lines = [healthy(step) | (collapsed if step > 500 else {}) for step in range(1, 600)]
    found = rung(alarm, lines)
    assert set(found) == set(range(min(found), 600))
    assert 500 < min(found) <= 505  # three lines, and those the rank's median needs
    # What falls needs a median more than what is low.
    assert all(set(names) <= set(name.split()) for names in found.values())
    assert found[599] == sorted(name.split())


def test_a_teacher_that_sharpens_may_leave_prototypes():
    # From a uniform teacher to 800 sure prototypes: a share of 0.01, as published runs end with.
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=0)
    lines = []
    for step in range(1, 400):
        entropy = UNIFORM * max(0.05, 0.9 - step / 300)
        lines.append(
            healthy(step)
            | {"teacher_entropy": entropy}
            | {"prototype_perplexity": max(800.0, math.exp(entropy + 0.01 * step))}
        )
    assert rung(alarm, lines) == {}


def test_few_prototypes_are_few_for_their_number():
    line = {"teacher_entropy": 0.1, "prototype_perplexity": 10.0, "loss": 1.0}
    for prototypes, alarms in ((1024, ["few_prototypes"]), (64, None)):
        alarm = CollapseAlarm(prototypes, warmup_steps=0)
        found = [alarm.judge({"step": step, **line}).get("alarm") for step in range(1, 6)]
        assert found[-1] == alarms


def test_a_teacher_that_is_sure_of_many_prototypes_is_left_alone():
    alarm = CollapseAlarm(1024, warmup_steps=0)
    line = {"teacher_entropy": 0.01, "prototype_perplexity": 700.0}
    assert rung(alarm, ({"step": step, **line} for step in range(1, 20))) == {}


def test_a_run_that_never_left_collapse_rings_after_its_warm_up():
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=50)
    lines = [
        healthy(step) | {"teacher_entropy": UNIFORM, "effective_rank": 1.01}
        for step in range(1, 100)
    ]
    found = rung(alarm, lines)
    assert min(found) == 53
    assert found[99] == ["falling_rank", "uniform_teacher"]


def test_single_bad_lines_do_not_ring():
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=0)
    bad = {"teacher_entropy": UNIFORM, "loss": UNIFORM}
    lines = [healthy(step) | (bad if step % 3 else {}) for step in range(100, 200)]
    assert rung(alarm, lines) == {}


def test_an_episode_is_told_once_with_advice_and_again_when_it_returns():
    alarm, notices = CollapseAlarm(PROTOTYPES, warmup_steps=50), Alerts()
    told = []
    for step in range(1, 1000):
        line = healthy(step)
        if 300 <= step < 400 or 600 <= step < 700:
            line["teacher_entropy"] = UNIFORM
        told += notices.new(line | alarm.judge(line))
    assert len(told) == 2
    assert told[0].startswith("step 302: teacher_entropy 11.1: ")
    assert "Lower loss.teacher_temp" in told[0]
    assert told[1].startswith("step 602: ")


@pytest.mark.parametrize("name", ALARMS)
def test_advice_names_keys_that_exist(name):
    import re

    from terrafm.config import settings

    keys = {key for key, *_ in settings()}
    named = set(re.findall(r"\b(?:loss|optim|head)\.[a-z_]+", ALARMS[name]))
    assert named
    assert named <= keys


def test_lines_without_some_numbers_are_fine():
    alarm = CollapseAlarm(PROTOTYPES, warmup_steps=0)
    for step in range(10):
        assert alarm.judge({"step": step}) == {}
        assert alarm.judge({"step": step, "loss": math.nan, "teacher_entropy": math.nan}) == {}
    assert CollapseAlarm(1, 0).judge(healthy(100)) == {}


def test_the_warm_up_covers_temperature_freezing_and_centers():
    def warmup(total):
        options = {"total_steps": total, "steps_per_epoch": 10**6, "global_batch": 256}
        return CollapseAlarm.of(64, Schedules(OptimConfig(), LossConfig(), **options))._warmup

    assert warmup(100) == 50
    assert warmup(10_000) == 1000


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.ones(40, 7)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.eye(4)[[0, 1] * 10]) == pytest.approx(2.0, abs=1e-4)
    assert effective_rank(torch.zeros(3, 3)) is None
    assert effective_rank(torch.full((3, 3), torch.nan)) is None


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_effective_rank_is_that_of_the_singular_values(shape):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum()
    expected = math.exp(-(share * share.log()).sum())
    assert effective_rank(features) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (8,), (20,), (5, 9, 1)])
def test_a_sample_keeps_the_newest_rows(sizes):
    sample, rows = FeatureSample(capacity=8), torch.arange(100.0)[:, None] * torch.ones(1, 2)
    start = 0
    for size in sizes:
        sample.add(rows[start : start + size])
        start += size
    expected = set(range(max(0, start - 8), start))
    assert set(sample._rows[: sample._filled, 0].int().tolist()) == expected


def test_an_empty_sample_has_no_rank():
    assert FeatureSample().effective_rank() is None

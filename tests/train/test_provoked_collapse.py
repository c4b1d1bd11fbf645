"""Real training that is made to collapse rings the alarm; the golden recipe does not."""

import itertools
from importlib import util
from pathlib import Path

import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.metrics.step_line import Monitor, metrics_line
from terrafm.train.worker.setup import TrainingSetup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SOFT = ["loss.warmup_teacher_temp=1.0", "loss.teacher_temp=1.0"]
SHARP = ["loss.warmup_teacher_temp=0.01", "loss.teacher_temp=0.01"]
UNCENTERED = ["loss.center_momentum=1.0", "loss.alpha=1.0"]


def overrides():
    spec = util.spec_from_file_location("golden_curve", Path(__file__).with_name("golden_curve.py"))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OVERRIDES


@pytest.mark.parametrize(
    ("settings", "alarms"),
    [
        ([], set()),
        (SOFT, {"uniform_teacher", "loss_at_chance"}),
        (SHARP + UNCENTERED, {"one_prototype"}),
    ],
)
def test_alarms_of_real_runs(small_dataset, settings, alarms):
    steps = ["train.steps=60", "train.log_every=1"]
    setup = TrainingSetup.open(
        load_config("demo", [*overrides(), *steps, *settings]), small_dataset
    )
    distillation, layout = setup.plain_distillation(), setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, 0))
    monitor = Monitor(setup.config, setup.schedules, 1, torch.device("cpu"))
    rung = set()
    for step in range(60):
        now = setup.schedules.at(step)
        batches = list(itertools.islice(stream, layout.n_micro))
        statistics = distillation.forward_backward(batches, now)
        _, norm = distillation.finish(now)
        line = metrics_line(step + 1, statistics, now, distillation, grad_norm=norm, skipped=0)
        rung |= set(monitor.complete(line).get("alarm", ()))
    assert rung == alarms

"""Where the time went, what it gave, and what holds a run up."""

import itertools
import re
import time

import pytest
import torch

from terrafm.config import load_config, settings
from terrafm.data.samples.loader import make_batches
from terrafm.train.metrics.alerts import Alerts
from terrafm.train.metrics.bottleneck import BOTTLENECKS, Bottleneck
from terrafm.train.metrics.step_line import Monitor, Rates, metrics_line
from terrafm.train.step.timer import PHASES, StepTimer, Window
from terrafm.train.worker.setup import TrainingSetup

CPU = torch.device("cpu")


def test_shares_are_what_the_phases_took():
    timer = StepTimer(CPU)
    for phase, seconds in (("data", 0.06), ("forward", 0.02), ("data", 0.06)):
        with timer.phase(phase):
            time.sleep(seconds)
    time.sleep(0.06)
    timer.step_done(12)
    window = timer.take()
    assert window.seconds == pytest.approx(0.2, abs=0.1)
    assert window.samples == 12
    assert sum(window.shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert window.shares["data"] == pytest.approx(0.12 / window.seconds, abs=0.1)
    assert window.shares["other"] >= 0.05 / window.seconds
    assert window.shares["backward"] == 0.0
    again = timer.take()
    assert again.samples == 0
    assert again.shares["data"] == 0.0


def test_marks_are_added_up_in_time_when_no_line_is_written():
    timer = StepTimer(CPU)
    for _ in range(5000):
        with timer.phase("forward"):
            pass
        timer.step_done(1)
    assert len(timer._open) <= 2001
    assert timer.take().samples == 5000


class Gpu:
    """A clock whose marks are past only after a while, as events of a GPU."""

    def __init__(self):
        self.time, self.past, self.waits = 0.0, 0.0, 0

    def mark(self):
        self.time += 1.0
        return self.time

    def passed(self, mark):
        return mark <= self.past

    def wait(self, mark):
        self.waits += 1
        self.past = max(self.past, mark)

    def between(self, begin, end):
        assert end <= self.past, "read before it was past"
        return end - begin


def test_marks_of_a_device_are_waited_for_only_when_a_line_is_written():
    timer = StepTimer(CPU)
    timer._clock = clock = Gpu()
    for step in range(1500):
        for phase in ("forward", "backward", "backward"):
            with timer.phase(phase):
                pass
        clock.past = 6.0 * step  # The device is a step behind.
        timer.step_done(1)
    assert clock.waits == 0
    assert len(timer._open) <= 2100
    window = timer.take()
    assert clock.waits == 1
    # One tick of the forward and two of the backward pass a step, all of them counted.
    assert window.shares["forward"] == pytest.approx(1 / 3, abs=1e-3)
    assert window.shares["backward"] == pytest.approx(2 / 3, abs=1e-3)


def window(seconds=10.0, samples=100, **shares):
    return Window(seconds, samples, dict.fromkeys((*PHASES, "other"), 0.0) | shares)


def test_rates_per_worker_and_mfu():
    rates = Rates(flops=2e12, workers=4, peak=100e12, device=CPU)
    line = rates.line(window(samples=800, data=0.5, forward=0.2, other=0.3))
    assert line["tiles_per_second"] == 80.0
    assert line["tiles_per_second_per_worker"] == 20.0
    assert line["tflops_per_worker"] == 40.0
    assert line["mfu"] == 0.4
    assert line["data_wait"] == 0.5
    assert (line["share_forward"], line["share_other"]) == (0.2, 0.3)
    assert "share_data" not in line
    assert line["memory_bytes"] > 10_000_000
    assert "device_memory_bytes" not in line


def test_mfu_is_left_out_where_the_peak_is_not_known():
    line = Rates.of(load_config("demo"), 1, CPU).line(window())
    assert "mfu" not in line
    assert line["tflops_per_worker"] > 0


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_largest_share_is_named_with_keys_that_exist(name):
    judge = Bottleneck()
    assert judge.judge(window(**{name: 0.9})) == {}  # The start of the stream.
    line = {"step": 20} | judge.judge(window(**{name: 0.61, "forward": 0.3}))
    assert line["bottleneck"] == name
    # The newest line alone may say something else.
    shares = Rates(1.0, 1, None, CPU).line(window(**{name: 0.001}))
    (notice,) = Alerts().new(line | shares)
    assert notice.startswith("step 20: 61% of the time is ")
    keys = {key for key, *_ in settings()}
    named = set(re.findall(r"\b(?:train|data)\.[a-z_]+", BOTTLENECKS[name]))
    assert named
    assert named <= keys


def test_computation_is_no_bottleneck():
    judge = Bottleneck()
    judge.judge(window())
    judged = judge.judge(window(forward=0.3, backward=0.6, data=0.1))
    assert judged == {"bottleneck": "compute", "bottleneck_share": 0.1}
    assert Alerts().new({"step": 1, "bottleneck": "compute"}) == []


def test_a_single_slow_line_is_no_bottleneck_of_the_run():
    judge = Bottleneck()
    for _ in range(30):
        judge.judge(window(backward=0.9))
    assert judge.judge(window(checkpoint=0.9))["bottleneck"] == "compute"
    for _ in range(30):
        found = judge.judge(window(data=0.9))
    assert found == {"bottleneck": "data", "bottleneck_share": 0.9}


def test_nothing_is_named_before_some_seconds_were_seen():
    judge = Bottleneck()
    assert [judge.judge(window(seconds=3.0, data=0.9)) for _ in range(5)] == [
        {},
        {},
        {},
        {},
        {"bottleneck": "data", "bottleneck_share": 0.9},
    ]


def test_the_line_of_a_real_step(small_dataset):
    config = load_config("demo", ["train.steps=2", "train.global_batch=8", "train.micro_batch=4"])
    setup = TrainingSetup.open(config, small_dataset)
    distillation, layout = setup.plain_distillation(), setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, 0))
    monitor = Monitor(config, setup.schedules, 1, CPU)
    settings_now = setup.schedules.at(0)
    with monitor.timer.phase("data"):
        batches = list(itertools.islice(stream, layout.n_micro))
    statistics = distillation.forward_backward(batches, settings_now, monitor.timer.phase)
    _, norm = distillation.finish(settings_now, monitor.timer.phase)
    monitor.timer.step_done(8)
    line = monitor.complete(
        metrics_line(1, statistics, settings_now, distillation, grad_norm=norm, skipped=0)
    )
    for phase in ("prepare", "teacher", "forward", "backward", "optimizer"):
        assert line[f"share_{phase}"] > 0, phase
    assert line["data_wait"] > 0
    assert 1.0 < line["effective_rank"] <= 8.0
    assert len(statistics.losses) == 2
    mean = torch.cat(statistics.losses).double().mean().item()
    assert mean == pytest.approx(line["loss"])

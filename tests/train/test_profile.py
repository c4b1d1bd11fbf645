"""A trace of a few steps that a browser reads, with the step's phases by name."""

import itertools
import json
import uuid

import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.storage import list_names, read_bytes
from terrafm.train.step.timer import StepTimer
from terrafm.train.worker.profiler import StepProfiler
from terrafm.train.worker.setup import TrainingSetup


def ranges(text):
    """Names of the complete events of a trace, with how often they occur."""
    events = [e["name"] for e in json.loads(text)["traceEvents"] if e.get("ph") == "X"]
    return {name: events.count(name) for name in set(events)}


def test_the_phases_of_real_steps_are_in_the_trace(small_dataset, tmp_path):
    overrides = ["train.steps=6", "train.global_batch=4", "train.micro_batch=2"]
    setup = TrainingSetup.open(load_config("demo", overrides), small_dataset)
    distillation, layout = setup.plain_distillation(), setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, 0))
    timer, profiler = StepTimer(torch.device("cpu")), StepProfiler(str(tmp_path / "profile"), 2)
    for step in range(6):
        settings = setup.schedules.at(step)
        with timer.phase("data"):
            batches = list(itertools.islice(stream, layout.n_micro))
        distillation.forward_backward(batches, settings, timer.phase)
        distillation.finish(settings, timer.phase)
        profiler.step_done()
    profiler.close()
    found = ranges((tmp_path / "profile" / "trace.json").read_text())
    # Two steps of two micro-batches; the teacher also moves once a step.
    assert found["step/data"] == found["step/optimizer"] == 2
    assert found["step/forward"] == found["step/backward"] == 4
    # What is common, then the teacher's views and the student's.
    assert found["step/prepare"] == 3 * 4
    assert found["step/teacher"] == 6
    assert "aten::addmm" in found
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "Self CPU" in table
    assert "step/backward" in table or "aten::" in table


@pytest.mark.parametrize("done", [3, 9])
def test_a_run_that_ends_sooner_or_goes_on_leaves_one_trace(done):
    folder = f"memory://{uuid.uuid4().hex}"
    profiler = StepProfiler(folder, 4)
    for _ in range(done):
        with torch.profiler.record_function("a step"):
            torch.ones(3) + 1
        profiler.step_done()
    profiler.close()
    assert sorted(list_names(folder)) == ["operators.txt", "trace.json"]
    assert ranges(read_bytes(f"{folder}/trace.json"))["a step"] == min(done - 2, 4)


def test_no_steps_no_trace(tmp_path):
    profiler = StepProfiler(str(tmp_path), 0)
    profiler.step_done()
    profiler.close()
    assert list(tmp_path.iterdir()) == []

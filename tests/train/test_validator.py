"""The driver's validations on a real Ray: newest only, never in training's way, never lost."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.util.placement_group import placement_group, remove_placement_group
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from terrafm.config import load_config
from terrafm.ray.runtime import cluster_nodes
from terrafm.train.checkpoints.best import held_reasons, read_best
from terrafm.train.checkpoints.store import TrainingState, save_checkpoint
from terrafm.train.checkpoints.validations import ValidationLog, read_validations
from terrafm.train.driver.capacity import fitting_workers
from terrafm.train.driver.events import EventLog, read_events
from terrafm.train.driver.validator import Validator
from terrafm.train.metrics.trackers import TrackedPicture, TrackedRun
from terrafm.train.step.engine import EngineState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CPUS = 3
CONFIG = load_config(
    None, ["train.checkpoint_every=10", "validation.every_steps=10", "validation.metric=knn"]
).validation


@dataclass
class Paced:
    """Ends when a file says so; leaves word of each start."""

    folder: str

    def check(self):
        return ["knn"]

    def score(self, checkpoint):
        step = int(checkpoint.rpartition("_")[2])
        with open(Path(self.folder, "starts"), "a") as file:
            file.write(f"{step} {os.getpid()} {os.nice(0)}\n")
        while not Path(self.folder, f"go-{step}").exists():
            time.sleep(0.1)
        if Path(self.folder, f"go-{step}").read_text():
            raise ValueError("the pixels are gone\nand more")
        return {"metrics": {"knn": 1.0 / step, "rank": None}}

    def pictures(self, checkpoint):
        step = int(checkpoint.rpartition("_")[2])
        if step > 20:
            raise ValueError("a tile is gone")
        content = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
        return [TrackedPicture("tiles", "Snow", content, "black")]


@pytest.fixture(scope="module", autouse=True)
def own_ray():
    ray.shutdown()
    # The workers cannot import a module of the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, logging_level="error",
             log_to_driver=False)  # fmt: skip
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture(autouse=True)
def all_is_free(own_ray):
    """Ray takes a moment to have back what the test before held."""
    until(lambda: free_cpus() == CPUS, "something is still held", 120)


def save(run, *steps):
    tensors = {"weight": torch.zeros(2)}
    state = EngineState(tensors, tensors)
    for step in steps:
        save_checkpoint(f"{run}/checkpoints", TrainingState(step, state, tensors, tensors))


def allow(run, step, text=""):
    (run / f"go-{step}").write_text(text)


def starts(run):
    """Step, process and niceness of each start."""
    path = run / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def until(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def steps_of(run):
    return [line["step"] for line in read_validations(str(run))]


def shown(run):
    events = EventAccumulator(str(run / "tensorboard" / "pictures")).Reload()
    return [image.step for image in events.Images("tiles/snow")]


def new_validator(run, total, config=CONFIG, cancelled=None):
    validator = Validator(
        Paced(str(run)), ValidationLog(str(run), config, total), EventLog(str(run)),
        TrackedRun(str(run), part="validation"), config,
        trackers=["tensorboard"], cancelled=cancelled or threading.Event(),
    )  # fmt: skip
    validator.go_on()
    return validator


def free_cpus():
    return ray.available_resources().get("CPU", 0.0)


def test_the_newest_is_next_and_the_last_is_waited_for(tmp_path, caplog):
    save(tmp_path, 10)
    with new_validator(tmp_path, 40):
        until(lambda: len(starts(tmp_path)) == 1, "step 10 never started")
        save(tmp_path, 20, 30, 40)
        until(lambda: set(held_reasons(f"{tmp_path}/checkpoints")) == {10, 40}, "none is held")
        for step in (10, 20, 30, 40):
            allow(tmp_path, step)
        # It ends with step 40 validated, which had not begun.
    assert steps_of(tmp_path) == [10, 40]
    assert [(step, nice) for step, _, nice in starts(tmp_path)] == [(10, 19), (40, 19)]
    line = read_validations(str(tmp_path))[0]
    assert line["metrics"] == {"knn": 0.1, "rank": None}
    assert line["seconds"] >= 0
    assert read_best(f"{tmp_path}/checkpoints").step == 10
    assert held_reasons(f"{tmp_path}/checkpoints") == {10: "best knn"}
    told = [(e["step"], e["value"], e["best"]) for e in read_events(str(tmp_path))]
    assert told == [(10, 0.1, True), (40, 0.025, False)]
    assert list((tmp_path / "tensorboard" / "validation").iterdir())
    assert shown(tmp_path) == [10]
    assert "the trackers get no pictures after step 40: a tile is gone" in caplog.text
    until(lambda: free_cpus() == CPUS, "its CPU is not free again", 120)


def test_a_process_that_dies_is_started_again_and_a_fault_that_stays_is_told_once(tmp_path):
    save(tmp_path, 10)
    with new_validator(tmp_path, 20):
        until(lambda: len(starts(tmp_path)) == 1, "never started")
        os.kill(starts(tmp_path)[0][1], signal.SIGKILL)
        until(lambda: len(starts(tmp_path)) == 2, "never started again")
        allow(tmp_path, 10)
        until(lambda: steps_of(tmp_path) == [10], "never scored")
        allow(tmp_path, 20, "broken")
        save(tmp_path, 20)
    assert steps_of(tmp_path) == [10]
    failed = [e for e in read_events(str(tmp_path)) if e["event"] == "not_validated"]
    assert [(e["step"], e["reason"], e["last"]) for e in failed] == [
        (10, "its process died", False),
        (20, "the pixels are gone", True),
    ]
    assert len(starts(tmp_path)) == 3
    # Perhaps they were too much for its memory.
    assert not (tmp_path / "tensorboard" / "pictures").exists()


def test_what_is_under_way_when_a_run_fails_ends_and_is_done_by_the_next_command(tmp_path):
    save(tmp_path, 10)

    def train():
        with new_validator(tmp_path, 20):
            until(lambda: len(starts(tmp_path)) == 1, "never started")
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        train()
    assert steps_of(tmp_path) == []
    until(lambda: free_cpus() == CPUS, "its CPU is not free again", 120)
    allow(tmp_path, 10)
    with new_validator(tmp_path, 20):
        pass
    assert steps_of(tmp_path) == [10]


def test_what_lies_past_the_step_that_a_group_goes_on_from_is_done_anew(tmp_path):
    save(tmp_path, 10, 20)
    allow(tmp_path, 20)
    with new_validator(tmp_path, 30) as validator:
        until(lambda: steps_of(tmp_path) == [20], "never scored")
        save(tmp_path, 30)
        until(lambda: len(starts(tmp_path)) == 2, "never started")
        # Both were damaged, and are written again.
        validator.going_on_from(10)
        assert steps_of(tmp_path) == []
        allow(tmp_path, 30)
    assert steps_of(tmp_path) == [30]


def test_it_lives_on_what_is_left_and_makes_way(tmp_path):
    need = {"CPU": 1.5}
    save(tmp_path, 10)
    with new_validator(tmp_path, 20) as validator:
        nodes = cluster_nodes()
        # Before it runs, its CPU is kept free: one worker and something to read with.
        assert validator.reserved(nodes) == {"CPU": 1.0}
        assert fitting_workers(nodes, need, 9, validator.reserved(nodes)) == 1
        until(lambda: len(starts(tmp_path)) == 1, "never started")
        until(lambda: not validator.reserved(cluster_nodes()), "not seen on the cluster", 120)
        nodes = cluster_nodes()
        # What it holds is in no count of what is free, so that it counts once.
        assert sum(node.available.get("CPU", 0) for node in nodes) == CPUS - 1
        assert fitting_workers(nodes, need, 9, validator.reserved(nodes)) == 1
        assert sum(node.available["CPU"] for node in validator.freed(nodes)) == CPUS
        assert not validator.make_way(nodes, need, 9)
        # A worker that would hold all but one: only without the validation is there room.
        assert not validator.make_way(nodes, {"CPU": 1.0}, 1)
        assert steps_of(tmp_path) == []
        allow(tmp_path, 10)
    assert steps_of(tmp_path) == [10]


def test_workers_that_fit_only_without_it_come_first(tmp_path):
    save(tmp_path, 10)
    small = CONFIG.model_copy(update={"cpus": 0.5})
    with new_validator(tmp_path, 20, small) as validator:
        until(lambda: len(starts(tmp_path)) == 1, "never started")
        until(lambda: not validator.reserved(cluster_nodes()), "not seen on the cluster", 120)
        # Of two nodes this would be the one that the validation lies on: worker 2 has no place.
        (node,) = cluster_nodes()
        halves = [
            type(node)(node.id, "one", dict(node.available) | {"CPU": 1.0}),
            type(node)("other", "other", {"CPU": 2.0}),
        ]
        assert fitting_workers(halves, {"CPU": 1.25}, 2, validator.reserved(halves)) == 1
        assert validator.make_way(halves, {"CPU": 1.25}, 2)
        until(lambda: free_cpus() == CPUS, "it has not made way", 120)
        validator.go_on()
        until(lambda: len(starts(tmp_path)) == 2, "it was not done again")
        allow(tmp_path, 10)
    assert steps_of(tmp_path) == [10]


def test_where_nothing_is_left_it_waits_and_nobody_for_it(tmp_path):
    taken = placement_group([{"CPU": CPUS}])
    ray.get(taken.ready(), timeout=60)
    save(tmp_path, 10)
    allow(tmp_path, 10)
    with new_validator(tmp_path, 20) as validator:
        time.sleep(3)
        assert starts(tmp_path) == []
        assert validator.reserved(cluster_nodes()) == {"CPU": 1.0}
        remove_placement_group(taken)
        until(lambda: steps_of(tmp_path) == [10], "never scored")


def test_a_cancelled_run_waits_for_nothing(tmp_path):
    save(tmp_path, 10)
    cancelled = threading.Event()
    with new_validator(tmp_path, 20, cancelled=cancelled):
        until(lambda: len(starts(tmp_path)) == 1, "never started")
        cancelled.set()
    assert steps_of(tmp_path) == []

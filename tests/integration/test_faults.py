"""Faults that befall a running pretraining: each is survived, and said in one line."""

import os
import signal

import psutil
import pytest
from clusters import cluster, environment, lose, training_workers, wait_until
from commands import start
from test_elastic import assert_planned_samples, command, step_of

from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def events_of(output, name):
    return [event for event in read_events(str(output)) if event["event"] == name]


def test_a_lost_node_is_done_without(small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    with cluster(2, 2) as made:
        arguments = command(small_dataset, output, "train.workers=[1,2]")
        process = start(*arguments, log=log, environment=environment(made))
        wait_until(lambda: step_of(output) >= 17, "step 17", process, log=log)
        lose(made, made.worker_nodes and next(iter(made.worker_nodes)))
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert [event["workers"] for event in events_of(output, "started")] == [2, 1]
    assert_planned_samples(output, small_dataset)


def test_a_rank_that_hangs_is_named_and_the_run_goes_on(small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    settings = ("train.workers=2", "train.hang_timeout=12")
    process = start(*command(small_dataset, output, *settings), log=log)
    wait_until(lambda: step_of(output) >= 17, "step 17", process, log=log)
    os.kill(training_workers()[1].pid, signal.SIGSTOP)
    assert process.wait(timeout=1200) == 0, log.read_text()
    (hung,) = events_of(output, "hung")
    assert "has been silent for" in hung["reason"]
    assert f"no progress for 12 s: {hung['reason']}" in " ".join(log.read_text().split())
    assert_planned_samples(output, small_dataset)


def test_the_newest_checkpoint_is_damaged(small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start(*command(small_dataset, output, "train.workers=2"), log=log)
    checkpoints = str(output / "checkpoints")
    wait_until(
        lambda: len(list_checkpoints(checkpoints)) >= 3, "three checkpoints", process, log=log
    )
    for worker in training_workers():
        os.kill(worker.pid, signal.SIGSTOP)
    step, newest = list_checkpoints(checkpoints)[-1]
    weights = os.path.join(newest, "teacher.safetensors")
    with open(weights, "r+b") as file:
        file.seek(os.path.getsize(weights) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    for worker in training_workers():
        os.kill(worker.pid, signal.SIGKILL)
    assert process.wait(timeout=1200) == 0, log.read_text()
    assert events_of(output, "resumed")[0]["step"] < step
    text = " ".join(log.read_text().split())
    assert "teacher.safetensors is not what was written; going on from " in text
    assert_planned_samples(output, small_dataset)


def test_failures_without_progress_end_the_run_with_their_reason(small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    settings = ("train.max_failures=1", "train.checkpoint_every=1000")
    process = start(*command(small_dataset, output, *settings), log=log)
    for number in (1, 2):
        wait_until(
            lambda n=number: len(events_of(output, "training")) >= n, "training", process, log=log
        )
        os.kill(training_workers()[0].pid, signal.SIGKILL)
        if number == 1:
            wait_until(lambda: events_of(output, "resumed"), "the next try", process, log=log)
    assert process.wait(timeout=1200) == 1
    text = " ".join(log.read_text().split())
    assert "terrafm: error: training failed 2 times without reaching another checkpoint" in text
    assert "Traceback" not in text


def test_the_controller_of_ray_train_dies(small_dataset, tmp_path):
    """It ends the driver's call in another way than a rank does, and leaves what it held."""
    output, log = tmp_path / "run", tmp_path / "log"
    process = start(*command(small_dataset, output, "train.workers=1"), log=log)
    wait_until(lambda: step_of(output) >= 17, "step 17", process, log=log)
    (controller,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "TrainController" in " ".join(child.cmdline())
    ]
    controller.kill()
    assert process.wait(timeout=1200) == 0, log.read_text()
    (lost,) = events_of(output, "lost")
    assert "controller died" in lost["reason"]
    assert_planned_samples(output, small_dataset)


def test_the_head_is_lost(small_dataset, tmp_path):
    """The driver and all workers end with it; what is saved goes on under a new one."""
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = command(small_dataset, output, "train.workers=1")
    with cluster(3) as made:
        process = start(*arguments, log=log, environment=environment(made))
        wait_until(lambda: step_of(output) >= 17, "step 17", process, log=log)
        lose(made, made.head_node)
        assert process.wait(timeout=300) != 0
    wait_until(lambda: not training_workers(), "the end of its workers")
    saved = list_checkpoints(str(output / "checkpoints"))[-1][0]
    assert saved >= 14
    with cluster(3) as made:
        process = start(*arguments, log=log, environment=environment(made))
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert [event["step"] for event in events_of(output, "started")] == [0, saved]
    assert_planned_samples(output, small_dataset)

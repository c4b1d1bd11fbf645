"""A worker, a validation or the command is killed: the run ends whole, each step scored once."""

import os
import signal
import time

import pytest
from commands import children_named, kill_command, start, terrafm

from terrafm.train.checkpoints.best import read_best
from terrafm.train.checkpoints.validations import read_validations
from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS, EVERY = 200, 20
SETTINGS = [
    f"train.steps={STEPS}",
    "train.global_batch=4",
    "train.workers=2",
    f"train.checkpoint_every={EVERY}",
    "train.keep_checkpoints=2",
    "head.num_prototypes=32",
    "data.local_crops=2",
    "data.rows_per_block=5",
    f"validation.every_steps={EVERY}",
    # Steps that are long enough to be disturbed, and a validation that is longer than 20 of them.
    "data.global_size=160",
]


def command(data, output):
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["pretrain", "--config", "demo", "--data", data, "--output", output, *overrides]


def validation_process(process, output, seconds=1200):
    """Of a validation that is under way."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be disturbed"
        if found := children_named("ray::_score", process):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no validation was seen")


def assert_whole(output):
    steps = [line["step"] for line in read_validations(str(output))]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert all(step % EVERY == 0 for step in steps)
    scores = {line["step"]: line["metrics"]["knn20/s2_l2a/accuracy"]
              for line in read_validations(str(output))}  # fmt: skip
    best = read_best(str(output / "checkpoints"))
    assert best.step == min(s for s, v in scores.items() if v == max(scores.values()))
    assert best.value == max(scores.values())
    kept = {path.name for path in (output / "checkpoints").iterdir()}
    last_two = {f"step_{STEPS:08d}", f"step_{STEPS - EVERY:08d}"}
    assert kept == {"best.json", best.checkpoint, *last_two}


@pytest.mark.parametrize("victim", ["worker", "validation"])
def test_a_process_is_killed_during_a_validation(victim, small_dataset, tmp_path):
    output = tmp_path / "run"
    process = start(*command(small_dataset, output), log=tmp_path / "log")
    validating = validation_process(process, output)
    if victim == "validation":
        os.kill(validating.pid, signal.SIGKILL)
    else:
        os.kill(children_named("RayTrainWorker", process)[0].pid, signal.SIGKILL)
    assert process.wait(timeout=1800) == 0, (tmp_path / "log").read_text()
    assert_whole(output)
    events = read_events(str(output))
    failed = [event for event in events if event["event"] == "not_validated"]
    lost = [event for event in events if event["event"] == "lost"]
    # Who trains does not notice a validation that dies, nor a validation a worker that does.
    if victim == "validation":
        assert (failed[0]["reason"], lost) == ("its process died", [])
    else:
        assert (failed, len(lost)) == ([], 1)


def test_the_killed_command_goes_on_when_it_is_given_again(small_dataset, tmp_path):
    output = tmp_path / "run"
    process = start(*command(small_dataset, output), log=tmp_path / "log")
    validation_process(process, output)
    kill_command(process)
    again = terrafm(*command(small_dataset, output), timeout=1800)
    assert "best checkpoint" in again.stdout
    assert_whole(output)

"""A worker or the whole command is killed mid-epoch: nothing is lost, nothing is doubled."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from commands import children_named, kill_command, start, terrafm

from terrafm.config import load_config
from terrafm.train.checkpoints.store import load_checkpoint
from terrafm.train.worker.setup import TrainingSetup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, BATCH, EVERY = 40, 6, 7
SETTINGS = [
    f"train.steps={STEPS}",
    f"train.global_batch={BATCH}",
    f"train.checkpoint_every={EVERY}",
    "train.workers=2",
    "train.audit_samples=true",
    "head.num_prototypes=32",
    "data.local_crops=2",
    "data.rows_per_block=5",
]


def command(data, output):
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["pretrain", "--config", "demo", "--data", data, "--output", output, *overrides]


@pytest.fixture(scope="module")
def undisturbed(small_dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    terrafm(*command(small_dataset, output))
    return output


def wait_for_step(output, step, process, seconds=400):
    metrics = Path(output) / "metrics.jsonl"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


def assert_history_is_whole(output, data):
    """Every planned sample once, and nothing else."""
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    setup = TrainingSetup.open(load_config("demo", SETTINGS), data)
    epochs, positions, tiles = setup.plan.samples(0, STEPS * BATCH)
    found = sorted((r["epoch"], r["position"], r["step"], r["tile_id"]) for r in rows)
    assert found == [
        (int(e), int(p), i // BATCH, setup.dataset.tile_ids[t])
        for i, (e, p, t) in enumerate(zip(epochs, positions, tiles, strict=True))
    ]
    assert {r["rank"] for r in rows} == {0, 1}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    kept = sorted(p.name for p in (output / "checkpoints").iterdir())
    assert kept == ["step_00000028", "step_00000035", "step_00000040"]
    assert not list(output.glob(".staging-*"))
    return lines


def assert_same_weights(output, undisturbed):
    found = load_checkpoint(str(output / "checkpoints" / "step_00000040"))
    expected = load_checkpoint(str(undisturbed / "checkpoints" / "step_00000040"))
    for mine, theirs in (
        (found.engine.student, expected.engine.student),
        (found.engine.optimizer, expected.engine.optimizer),
        (found.teacher, expected.teacher),
        (found.centers, expected.centers),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_undisturbed(undisturbed, small_dataset):
    assert_history_is_whole(undisturbed, small_dataset)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_the_run_ends_by_itself(
    rank, undisturbed, small_dataset, tmp_path
):
    output = tmp_path / "run"
    process = start(*command(small_dataset, output), log=tmp_path / "log")
    wait_for_step(output, 17, process)
    workers = sorted(children_named("RayTrainWorker", process), key=lambda p: p.create_time())
    assert len(workers) == 2
    os.kill(workers[rank].pid, signal.SIGKILL)
    assert process.wait(timeout=1200) == 0, (tmp_path / "log").read_text()
    assert_history_is_whole(output, small_dataset)
    assert_same_weights(output, undisturbed)


def test_the_killed_command_goes_on_when_it_is_given_again(undisturbed, small_dataset, tmp_path):
    output = tmp_path / "run"
    process = start(*command(small_dataset, output), log=tmp_path / "log")
    wait_for_step(output, 17, process)
    kill_command(process)
    again = terrafm(*command(small_dataset, output), timeout=900)
    assert "resumed at" in again.stdout
    assert_history_is_whole(output, small_dataset)
    assert_same_weights(output, undisturbed)
    idle = terrafm(*command(small_dataset, output))
    assert "nothing to do" in idle.stdout

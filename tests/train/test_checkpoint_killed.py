"""kill -9 at random moments of asynchronous writes: what is visible is whole."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.models.weights import load_weights
from terrafm.storage import exists, join, read_bytes
from terrafm.train.checkpoints.exported import exported_step, exported_weights
from terrafm.train.checkpoints.intact import damage_of
from terrafm.train.checkpoints.store import list_checkpoints, load_checkpoint
from terrafm.train.metrics.log import read_metrics
from terrafm.train.run_folder import RunFolder

SCRIPT = Path(__file__).with_name("killed_writer.py")
EVERY = 2


def kill_and_look(run_folder, kills):
    """Kills so many writers, each in or after its first checkpoints; returns the newest of each."""
    chance = random.Random(kills)
    newest = []
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), run_folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as runs:  # fmt: skip
        for _ in range(kills):
            runs.stdin.write("go\n")
            runs.stdin.flush()
            child = int(runs.stdout.readline())
            wait_for_checkpoints(run_folder, chance.randrange(4))
            time.sleep(chance.uniform(0, 0.5))
            os.kill(child, signal.SIGKILL)
            assert runs.stdout.readline() == "ended\n"
            newest.append(look(run_folder))
        runs.stdin.close()
        assert runs.wait(timeout=60) == 0
    return newest


def wait_for_checkpoints(run_folder, number):
    """Until so many are new; a slow disk may take a while."""
    folder = RunFolder(run_folder).checkpoints
    before, new = _newest(folder), 0
    deadline = time.monotonic() + 60
    while new < number and time.monotonic() < deadline:
        time.sleep(0.02)
        new = (_newest(folder) - before) // EVERY


def _newest(folder):
    return max((step for step, _ in list_checkpoints(folder)), default=0)


def look(run_folder):
    found = list_checkpoints(RunFolder(run_folder).checkpoints)
    for step, uri in found:
        assert list(damage_of(uri)) == []
        state = load_checkpoint(uri)
        assert state.step == state.metrics["step"] == step
        assert (state.teacher["encoder.layer.0"] == step).all()
    for uri in exported_weights(run_folder):
        tensors, contract = load_weights(uri)
        assert 0 < contract.step <= found[-1][0]
        assert set(tensors) == {f"layer.{i}" for i in range(4)}
        assert all((tensor == contract.step).all() for tensor in tensors.values())
    if not found:
        return 0
    newest = found[-1][0]
    # What it counts as done is on file: once, and without a gap.
    assert [line["step"] for line in read_metrics(run_folder)][:newest] == list(
        range(1, newest + 1)
    )
    samples = join(run_folder, "samples.parquet")
    assert exists(samples)
    steps = pq.read_table(pa.BufferReader(read_bytes(samples)))["step"].to_pylist()
    assert steps[:newest] == list(range(newest))
    return newest


@pytest.mark.slow
def test_on_a_disk(tmp_path):
    newest = kill_and_look(str(tmp_path / "run"), kills=8)
    assert newest == sorted(newest)
    assert newest[-1] > 0
    assert exported_step(str(tmp_path / "run"), "last")
    kept = [step for step, _ in list_checkpoints(str(tmp_path / "run" / "checkpoints"))]
    assert all(step in kept for step in range(20, newest[-1] + 1, 20))


@pytest.mark.slow
def test_in_a_store(s3_bucket):
    newest = kill_and_look(join(s3_bucket, "run"), kills=8)
    assert newest == sorted(newest)
    assert newest[-1] > 0
    assert exported_step(join(s3_bucket, "run"), "last")

"""A run that grows, shrinks, is killed and changes its stage trains on the same samples."""

import itertools
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import cluster, drain, environment, training_workers, wait_until
from commands import start, terrafm

from terrafm.config import load_config
from terrafm.train.checkpoints.store import load_checkpoint
from terrafm.train.driver.events import read_events
from terrafm.train.worker.setup import TrainingSetup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, BATCH = 60, 6
SETTINGS = [
    f"train.steps={STEPS}",
    f"train.global_batch={BATCH}",
    "train.checkpoint_every=7",
    "train.log_every=1",
    "train.audit_samples=true",
    "train.precision=float32",
    # Of a node with two CPUs, so that each node holds one worker.
    "train.cpus_per_worker=1.5",
    "train.resize_interval=1",
    "head.num_prototypes=32",
    "data.local_crops=2",
    # Steps that are long enough to be disturbed.
    "data.global_size=160",
    "data.rows_per_block=5",
]


def command(data, output, *more):
    overrides = [part for setting in [*SETTINGS, *more] for part in ("--set", setting)]
    return ["pretrain", "--config", "demo", "--data", data, "--output", output, *overrides]


def weights(output):
    return load_checkpoint(str(output / "checkpoints" / f"step_{STEPS:08d}"))


def distance(one, other):
    """Largest difference of any weight."""
    return max(
        float((a[name] - b[name]).abs().max())
        for a, b in ((one.engine.student, other.engine.student), (one.teacher, other.teacher))
        for name in a
    )


def assert_planned_samples(output, data, steps=STEPS):
    """Every planned sample in its step, none missing, none twice."""
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    setup = TrainingSetup.open(load_config("demo", SETTINGS), data)
    epochs, positions, tiles = setup.plan.samples(0, steps * BATCH)
    assert sorted((r["epoch"], r["position"], r["step"], r["tile_id"]) for r in rows) == [
        (int(e), int(p), i // BATCH, setup.dataset.tile_ids[t])
        for i, (e, p, t) in enumerate(zip(epochs, positions, tiles, strict=True))
    ]


def step_of(output):
    metrics = Path(output) / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.fixture(scope="module")
def undisturbed(small_dataset, tmp_path_factory):
    """Runs at one, two and three workers, ZeRO-1."""
    outputs = {}
    for workers in (1, 2, 3):
        outputs[workers] = tmp_path_factory.mktemp("undisturbed") / "run"
        terrafm(*command(small_dataset, outputs[workers], f"train.workers={workers}"))
        assert_planned_samples(outputs[workers], small_dataset)
    return outputs


def start_elastic(made, data, output, log, *more):
    arguments = command(data, output, "train.workers=[1,2]", "train.standby=true", *more)
    return start(*arguments, log=log, environment=environment(made))


def test_grown_shrunk_killed_and_resumed_at_another_stage(undisturbed, small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    with cluster(2) as made:
        process = start_elastic(made, small_dataset, output, log)
        wait_until(lambda: step_of(output) >= 4, "step 4", process, log=log)
        # Grow.
        node = made.add_node(num_cpus=2)
        wait_until(
            lambda: len(training_workers(node)) == 1, "a worker on the new node", process, log=log
        )
        grown = step_of(output)
        wait_until(lambda: step_of(output) >= grown + 6, "steps of two workers", process, log=log)
        # SIGKILL of a worker.
        os.kill(training_workers(node)[0].pid, signal.SIGKILL)
        killed = step_of(output)
        wait_until(lambda: step_of(output) < killed, "a restart", process, log=log)
        wait_until(
            lambda: step_of(output) >= killed + 2, "steps after the restart", process, log=log
        )
        # Shrink.
        drain(made, node, 30)
        wait_until(
            lambda: (
                read_events(str(output))[-1]["event"] == "training"
                and read_events(str(output))[-1]["workers"] == 1
            ),
            "steps of one worker",
            process,
            log=log,
        )
        # Stop, and go on at another stage.
        process.send_signal(signal.SIGKILL)
        process.wait()
        made.remove_node(node)
        wait_until(lambda: not training_workers(), "the end of the killed command's workers")
        process = start_elastic(made, small_dataset, output, log, "train.zero_stage=2")
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert_planned_samples(output, small_dataset)
    events = read_events(str(output))
    assert [e["workers"] for e in events if e["event"] == "started"] == [1, 2, 2, 1, 1]
    stops = [e for e in events if e["event"] == "stopped"]
    assert len(stops) == 2
    (lost,) = [e for e in events if e["event"] == "resumed"]
    # Counted from the last word of the ranks, which may be that of the checkpoint's own step.
    assert 0 <= lost["steps"] <= 7
    finals = {workers: weights(folder) for workers, folder in undisturbed.items()}
    spread = max(distance(finals[a], finals[b]) for a, b in itertools.combinations(finals, 2))
    apart = min(distance(weights(output), final) for final in finals.values())
    print(f"{apart:.2e} apart; undisturbed runs of 1 to 3 workers up to {spread:.2e}")  # noqa: T201
    assert apart <= spread

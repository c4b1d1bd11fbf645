"""Runs that write checkpoints as a training does, until each is killed.

    python tests/train/killed_writer.py RUN_FOLDER

Every line of standard input starts one, whose process id is printed; a second line says that it
has ended. Each goes on from the newest whole checkpoint.
"""

import os
import sys

import torch

from terrafm.models.contract import WeightsContract
from terrafm.train.checkpoints.exported import export_last
from terrafm.train.checkpoints.intact import newest_intact
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.staging import remove_staging
from terrafm.train.checkpoints.store import TrainingState, load_checkpoint
from terrafm.train.checkpoints.writer import CheckpointWriter
from terrafm.train.metrics.log import MetricsLog
from terrafm.train.metrics.samples import PendingRecords, trim_samples
from terrafm.train.run_folder import RunFolder
from terrafm.train.step.engine import EngineState

EVERY = 2
CONTRACT = WeightsContract.build("terrafm_tiny", {"s1": {"mean": [0.0] * 2, "std": [1.0] * 2}})


def state_at(step):
    """A state whose every number is the step; a few megabytes."""
    tensors = {f"encoder.layer.{i}": torch.full((256, 256), float(step)) for i in range(4)}
    record = {"contract": CONTRACT.model_dump(mode="json")}
    return TrainingState(step, EngineState(tensors, tensors), tensors, tensors, record)


def run(folder):
    """Goes on for ever."""
    remove_staging(folder)
    checkpoints = RunFolder(folder).checkpoints
    newest, complaints = newest_intact(checkpoints)
    assert complaints == []
    step = load_checkpoint(newest).step if newest else 0
    trim_samples(folder, step)
    log = MetricsLog(folder, step)
    records = PendingRecords(folder, log)
    writer = CheckpointWriter(
        checkpoints,
        Retention(last=2, every=20),
        write_records=records.write,
        export=lambda state: export_last(folder, state),
        max_failed=1,
    )
    while True:
        records.add([], [(step, 0, f"tile_{step}", 0, step)])
        step += 1
        log.write({"step": step, "loss": 1 + (step * 7919 % 13) / 13})
        if step % EVERY == 0:
            writer.wait()
            state = state_at(step)
            state.metrics = log.newest
            writer.save(state)


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            run(sys.argv[1])
        print(child, flush=True)  # noqa: T201
        os.waitpid(child, 0)
        print("ended", flush=True)  # noqa: T201

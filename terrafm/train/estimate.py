"""What a run would cost: counted where it can be counted, measured where it must be."""

from __future__ import annotations

import itertools
import resource
import time
from dataclasses import replace
from typing import Any

from terrafm.data.samples.loader import make_batches
from terrafm.train.setup import TrainingSetup

_FLOAT = 4


def estimate(setup: TrainingSetup, *, measure: bool = True) -> dict[str, Any]:
    """Figures of `terrafm pretrain --dry-run`.

    Memory is exact for weights, gradients, moments and teacher, which ZeRO divides as its stage
    says; activations are the growth of this process over one measured micro-batch.

    Args:
        setup: configuration and dataset.
        measure: train one micro-batch in this process, on its CPU.

    Returns:
        Counts in steps, samples and bytes; times in seconds and hours.
    """
    train = setup.config.train
    # What the weights are costs nothing, and a run that goes on may not have those of its start.
    model = setup.config.model.model_copy(update={"init": None})
    setup = replace(setup, config=setup.config.model_copy(update={"model": model}))
    distillation = setup.plain_distillation()
    student = distillation.engine.student
    parameters = sum(p.numel() for p in student.parameters())
    centers = sum(b.numel() for b in distillation.criterion.buffers())
    figures: dict[str, Any] = {
        "steps": setup.total_steps,
        "samples": setup.total_steps * train.global_batch,
        "epochs": round(setup.total_steps / setup.steps_per_epoch, 2),
        "bytes_read": round(
            setup.dataset.bytes / len(setup.dataset) * setup.total_steps * train.global_batch
        ),
        "parameters": parameters,
        "memory_per_worker": _state_bytes(parameters, train.zero_stage, train.most_workers),
        "checkpoint_bytes": _FLOAT * (4 * parameters + centers),
        "checkpoints": -(-setup.total_steps // train.checkpoint_every),
    }
    if measure:
        layout = setup.layout(0, train.most_workers)
        batches = make_batches(**setup.stream_options(layout, 0))
        settings = setup.schedules.at(0)
        before = _peak_bytes()
        began = time.perf_counter()
        step = list(itertools.islice(batches, layout.n_micro))
        read = time.perf_counter()
        distillation.forward_backward(step[:1], settings)
        distillation.finish(settings)
        seconds = (time.perf_counter() - read) * layout.n_micro
        figures |= {
            "step_seconds": round(seconds, 3),
            "read_and_crop_seconds": round(read - began, 3),
            "hours": round(seconds * setup.total_steps / 3600, 3),
            "measured_on": "CPU of this machine, one process, reading not overlapped",
        }
        figures["memory_per_worker"] += max(0, _peak_bytes() - before)
    return figures


def _state_bytes(parameters: int, stage: int, workers: int) -> int:
    weights = parameters / (workers if stage >= 3 else 1)
    gradients = parameters / (workers if stage >= 2 else 1)
    # At stages 1 and 2 each worker also holds a float32 master copy of its share.
    masters = parameters / workers if stage in (1, 2) else 0
    moments = 2 * parameters / (workers if stage >= 1 else 1)
    return round(_FLOAT * (weights + gradients + masters + moments + parameters))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

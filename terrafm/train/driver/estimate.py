"""What a run would cost: counted where it can be counted, measured where it must be."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from terrafm.data.samples.loader import make_batches
from terrafm.train.metrics.step_line import peak_process_bytes
from terrafm.train.step.engine import Engine, PlainEngine
from terrafm.train.step.feature_distillation import FeatureDistillation
from terrafm.train.step.optimizer import (
    MOMENTS,
    reduce_bucket,
    reduce_buckets,
    trained_parameters,
)
from terrafm.train.worker.setup import TrainingSetup
from terrafm.units import counted, duration, human_bytes

_FLOAT = 4


def estimate(setup: TrainingSetup, *, measure: bool = True) -> dict[str, Any]:
    """Figures of `terrafm pretrain --dry-run`.

    `memory_state` is counted: weights, gradients, moments and teacher, which ZeRO divides as its
    stage says, and DeepSpeed's buffers. `memory_activations` is measured: the growth of this
    process over one micro-batch, on its CPU and without ZeRO; on a GPU they are others.
    `memory_per_worker` is their sum. What every process holds besides (Python, libraries, the
    samples made ahead) is in none of them.

    Args:
        setup: configuration and dataset.
        measure: train one micro-batch in this process, on its CPU.

    Returns:
        Counts in steps, samples and bytes; times in seconds and hours.
    """
    train = setup.config.train
    # What the weights are costs nothing, and a run that goes on may not have those of its start.
    model = setup.config.model.model_copy(update={"init": None})
    # One step on this CPU is not worth minutes of a compiler, which may not be there.
    eager = train.model_copy(update={"compile": False})
    changes = {"model": model, "train": eager}
    setup = replace(setup, config=setup.config.model_copy(update=changes))
    distillation = setup.plain_distillation()
    student = distillation.engine.student
    parameters = sum(p.numel() for p in student.parameters())
    trained = sum(p.numel() for _, p in trained_parameters(student))
    centers = sum(b.numel() for b in distillation.centers().values())
    state = state_bytes(parameters, train.zero_stage, train.most_workers, trained)
    if isinstance(distillation, FeatureDistillation):
        state += _FLOAT * distillation.frozen_parameters
    figures: dict[str, Any] = {
        "steps": setup.total_steps,
        "samples": setup.total_steps * train.global_batch,
        "epochs": round(setup.total_steps / setup.steps_per_epoch, 2),
        "bytes_read": round(
            setup.dataset.bytes / len(setup.dataset) * setup.total_steps * train.global_batch
        ),
        "parameters": parameters,
        "memory_per_worker": state,
        "memory_state": state,
        "checkpoint_bytes": _FLOAT * (2 * parameters + 2 * trained + centers),
        "checkpoints": -(-setup.total_steps // train.checkpoint_every),
    }
    if measure:
        layout = setup.layout(0, train.most_workers)
        batches = make_batches(**setup.stream_options(layout, 0))
        settings = setup.schedules.at(0)
        began = time.perf_counter()
        step = list(itertools.islice(batches, layout.n_micro))
        read = time.perf_counter() - began
        _make_resident(distillation.engine)
        with PeakMemory() as memory:
            began = time.perf_counter()
            distillation.forward_backward(step[:1], settings)
            distillation.finish(settings)
            seconds = (time.perf_counter() - began) * layout.n_micro
        figures["memory_per_worker"] = state + memory.growth
        figures |= {
            "memory_activations": memory.growth,
            "step_seconds": round(seconds, 3),
            "read_and_crop_seconds": round(read, 3),
            "hours": round(seconds * setup.total_steps / 3600, 3),
            "measured_on": "CPU of this machine, one process, reading not overlapped",
        }
    return figures


def describe_estimate(figures: dict[str, Any]) -> str:
    """What `estimate` found, in lines for the terminal."""
    done, left = figures["steps_done"], figures["steps"] - figures["steps_done"]
    rest = f", {left:,} of them left" if done else ""
    reads = f"{figures['epochs']:,} epochs, {human_bytes(figures['bytes_read'])} to read"
    state = human_bytes(figures["memory_state"])
    number = figures["checkpoints"]
    size = human_bytes(figures["checkpoint_bytes"])
    lines = {
        "the run": f"{figures['steps']:,} steps{rest}, {figures['samples']:,} samples: {reads}",
        "the model": f"{figures['parameters']:,} parameters",
        "a worker's memory": f"{state} for weights, gradients, moments and teacher",
        "on the disk": f"{counted(number, 'checkpoint')} of {size}{'' if number == 1 else ' each'}",
    }
    if "step_seconds" in figures:
        activations = human_bytes(figures["memory_activations"])
        whole = human_bytes(figures["memory_per_worker"])
        lines["a worker's memory"] = f"{whole}: {state} for weights, gradients, moments and teacher"
        lines[""] = f"and {activations} for the activations of a micro-batch"
        lines["a step"] = (
            f"{figures['step_seconds']:.3g} s, and {figures['read_and_crop_seconds']:.3g} s to "
            "read and crop its samples"
        )
        lines["all steps"] = f"{duration(figures['step_seconds'] * left)} where nothing waits"
        lines["measured on"] = figures["measured_on"]
    order = ["the run", "the model", "a worker's memory", "", "on the disk"]
    order += ["a step", "all steps", "measured on"]
    return "\n".join(f"{name:<20}{lines[name]}" for name in order if name in lines)


def state_bytes(parameters: int, stage: int, workers: int, trained: int | None = None) -> int:
    """What one worker holds of student, optimizer and teacher at the end of a backward pass.

    Args:
        parameters: of the student.
        stage: ZeRO stage, 0 to 3.
        workers: number of ranks.
        trained: those that are not frozen; all by default.
    """
    trained = parameters if trained is None else trained
    # Stage 3 gathers a layer's weights before its forward pass, and keeps up to a billion of them
    # for the backward pass (`stage3_max_reuse_distance`): all of Base and Large.
    weights = parameters * (1 + 1 / workers if stage >= 3 else 1)
    # Stage 1 reduces whole gradients, the others what each rank keeps.
    gradients = trained / (workers if stage >= 2 else 1)
    # ZeRO updates a copy of each worker's share, and reduces gradients out of buffers. Of a small
    # model, whose gradients all fit into the first, the second is never written to: on a CPU it
    # takes no memory, on a GPU 200 MB at most.
    masters = trained / workers if stage else 0
    bucket = min(trained, reduce_buckets(stage) * reduce_bucket(trained))
    moments = 2 * trained / (workers if stage else 1)
    return round(_FLOAT * (weights + gradients + masters + bucket + moments + parameters))


def _make_resident(engine: Engine) -> None:
    """Gradients and moments take their memory now: they are counted, not measured."""
    assert isinstance(engine, PlainEngine)
    for _, parameter in trained_parameters(engine.student):
        parameter.grad = torch.empty_like(parameter).fill_(0.0)
        for key in MOMENTS:
            # Zeros of the allocator are no pages yet.
            engine.optimizer.state[parameter][key].fill_(0.0)


class PeakMemory:
    """Peak of this process's resident memory within a block, above what it held before.

    Linux forgets an earlier peak where it is asked to; elsewhere only a growth beyond it counts.

    Attributes:
        growth: bytes, after the block.
    """

    def __enter__(self) -> Self:
        self.growth = 0
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _process_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = max(0, _process_bytes("VmHWM") - self._before)


def _process_bytes(key: str) -> int:
    """`VmRSS`, what is resident, or `VmHWM`, its peak; without /proc the peak for both."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_process_bytes()
    (line,) = (line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

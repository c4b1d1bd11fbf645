"""The training step alone, without Ray and DeepSpeed: tiles/s, FLOPs, MFU, memory, options.

    python benchmarks/step.py [--json] [--model terrafm_base] [--batch 64] [--device cuda] [...]
    python benchmarks/step.py --against FOLDER [--json] [...]
    python benchmarks/step.py --report [--json]

Synthetic batches of the real layout: bands, ragged modalities, crops, prototypes. A step is
everything from batches in (pinned) memory to the moved centers: normalisation, teacher, student,
loss, backward, clipping, AdamW, teacher update. It excludes data and start-up. Runs on a CPU or
one GPU and imports, of what is no part of Python, only torch, timm, NumPy, pydantic and PyYAML;
a machine that has these needs no installation but PYTHONPATH.

- Tiles per second: samples of a step by the median of its time.
- FLOPs per sample: counted by PyTorch over one forward and backward pass, matrix products and
  convolutions only, a multiplication and an addition being two. Without --one-modality they
  belong to this batch's draw of modalities.
- MFU: these FLOPs by the dense bfloat16 peak of the GPU's data sheet, where it is known here.
- Peak memory: most bytes in tensors during a step above those before it: activations,
  gradients, temporaries.
- For every optimisation the step without it by the step with it, in time and in peak memory:
  above 1 it pays. Steps alternate in one process, --rounds times; the median of the ratios.
- The loss alone, forward and backward, of all views at once by view by view: in a step on a CPU
  the weights' gradients are larger than the few samples' logits and hide it.
- Operations of a step: what PyTorch hands to the device, views and allocations left out; the same
  on every machine. Bytes saved: what one micro-batch's forward pass keeps for its backward pass,
  by sample, each storage once, without parameters.

With --against the step of this working tree beside that of another one (FOLDER, such as a
`git worktree` of an older commit), by the same harness: operations, bytes saved, and time, one
process for each, in turn, --rounds times.

With --report, on a GPU, all of this but --against for Base and Large at several micro-batches,
the most telling first; none is begun after 5 minutes, and one takes a minute or two (an estimate:
it has not been run on a GPU). On a CPU two small models, which shows that it runs.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Figure, alternate, median_ratio, note, parse, parser, report
from harness.dense_loss import DenseDINOLoss
from harness.step_counts import operations, saved_bytes
from harness.step_options import Option, Step, counted_attention, default, options
from harness.step_tree import Tree
from harness.step_work import SETTINGS, StepWork, build, seconds_per_step, synchronise
from torch.utils.flop_counter import FlopCounterMode

from terrafm.losses import DINOLoss

# Dense bfloat16 FLOP/s of the data sheets of the SXM modules; other forms differ.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100-SXM4": 312e12}
_SMALL = {
    "model": "terrafm_small",
    "batch": 2,
    "global_size": 96,
    "local_size": 48,
    "local_crops": 4,
    "precision": "float32",
    "steps": 2,
}
_LARGE = {
    "model": "terrafm_base",
    "batch": 64,
    "global_size": 224,
    "local_size": 96,
    "local_crops": 8,
    "precision": "bf16",
    "steps": 10,
}
# Model and micro-batch, the most telling first; none is begun after so many seconds.
_REPORT = [
    *[("terrafm_base", 16), ("terrafm_base", 64), ("terrafm_large", 32), ("terrafm_base", 128)],
    ("terrafm_large", 64),
]
_REHEARSAL = [("terrafm_tiny", 2), ("terrafm_tiny", 4)]
_BEGIN_UNTIL = 300
_QUICK = {
    "model": "terrafm_tiny",
    "global_size": 32,
    "local_size": 16,
    "local_crops": 2,
    "prototypes": 256,
    "steps": 1,
}


def peak_memory(step: Callable[[], object], device: torch.device) -> float:
    """Most bytes of tensors during a call, above those before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    results = profile.profiler
    assert results is not None
    changes = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def flops_per_sample(step: Step, work: StepWork) -> float:
    """Of one micro-batch's forward and backward pass."""
    distillation = step.distillation
    with counted_attention(), FlopCounterMode(display=False) as counter:
        distillation.forward_backward(step.batches[:1], SETTINGS)
    for parameter in distillation.engine.student.parameters():
        parameter.grad = None
    distillation.criterion.discard_pending()
    return counter.get_total_flops() / work.micro_rows


def compare(
    step: Step, others: list[Option], device: torch.device, steps: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step per round, and its peak memory, of the default and of every option."""
    contexts = {"default": default} | {option.name: option.other for option in others}
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    memory: dict[str, float] = {}
    for name, context in contexts.items():
        with context(step.distillation):
            step()  # compiles, and fills the allocator
            memory[name] = peak_memory(partial(step, overlap=False), device)
    for number in range(rounds):
        for name, context in contexts.items():
            with context(step.distillation):
                step()
                seconds[name].append(seconds_per_step(step, device, steps))
            note(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.4g} s")
    if device.type == "cuda":
        name = "copies overlapped with computation"
        seconds[name] = [
            seconds_per_step(partial(step, overlap=False), device, steps) for _ in range(rounds)
        ]
    return seconds, memory


def loss_figures(work: StepWork, device: torch.device, rounds: int) -> list[Figure]:
    """Time and peak memory of the loss alone, at 8 samples or more."""
    config = work.config
    samples, views = max(8, work.micro_rows), config.data.global_crops + config.data.local_crops
    prototypes = config.head.num_prototypes
    shape = (views, samples, prototypes)
    student = (torch.rand(shape, device=device) * 2 - 1).requires_grad_()
    teacher = torch.rand((config.data.global_crops, *shape[1:]), device=device) * 2 - 1

    def once(criterion: DINOLoss) -> None:
        student.grad = None
        criterion.per_sample(student, teacher, 0.04)[0].mean().backward()

    forms = {
        name: partial(once, kind(prototypes).to(device))
        for name, kind in (("view by view", DINOLoss), ("at once", DenseDINOLoss))
    }
    memory = {name: peak_memory(form, device) for name, form in forms.items()}
    timed = {name: partial(seconds_per_step, form, device, 5) for name, form in forms.items()}
    seconds = alternate(timed, rounds)
    what = (
        f"loss alone, logits {views} x {samples} x {prototypes}, all views at once / view by view"
    )
    return [
        Figure(f"{what}: {name}", value, None, "higher", "x")
        for name, value in (
            ("time", median_ratio(seconds, "at once", "view by view")),
            ("peak", memory["at once"] / memory["view by view"]),
        )
    ]


def against(work: StepWork, device: str, folder: Path, rounds: int) -> list[Figure]:
    """This working tree's step beside another's: what is counted, and time."""
    trees = {"here": Tree(ROOT, work, device), "there": Tree(folder.resolve(), work, device)}
    seconds = alternate({name: tree.seconds for name, tree in trees.items()}, rounds)
    for tree in trees.values():
        tree.close()
    busy = {name: tree.processor for name, tree in trees.items()}
    counted = {name: tree.counted for name, tree in trees.items()}
    saved = {name: c["saved_bytes_per_sample"] for name, c in counted.items()}
    found = [
        Figure(f"{_what(work)}: time there / here", median_ratio(seconds, "there", "here"), 1.0,
               "higher", "x"),
        Figure("processor time of a step: there / here", median_ratio(busy, "there", "here"), 1.0,
               "higher", "x"),
        Figure("bytes saved of a sample, here / there", saved["here"] / saved["there"], 0.85,
               "lower", "x"),
    ]  # fmt: skip
    for name in trees:
        found.append(Figure(f"bytes saved of a sample, {name}", saved[name] / 1e6, None,
                            "lower", "MB"))  # fmt: skip
    for part in ("all", "all but the optimizer"):
        sums = {
            name: sum(
                number
                for phase, number in c["operations"].items()
                if part == "all" or phase != "optimizer"
            )
            for name, c in counted.items()
        }
        bar = 2.0 if part == "all" else None
        label = f"operations of a step, {part}"
        found.append(Figure(f"{label}: there / here", sums["there"] / sums["here"], bar,
                            "higher", "x"))  # fmt: skip
        found += [Figure(f"{label}: {name}", n, None, "lower", "") for name, n in sums.items()]
    return found


def _what(work: StepWork) -> str:
    data = work.config.data
    return (
        f"{work.config.model.name}, {work.batch} samples in micro-batches of {work.micro_rows}, "
        f"{data.global_crops} x {data.global_size} + {data.local_crops} x {data.local_size} px, "
        f"K {work.config.head.num_prototypes}, {work.config.train.precision}"
    )


def figures(work: StepWork, device: torch.device, arguments: argparse.Namespace) -> list[Figure]:
    """Everything, for one configuration."""
    distillation = build(work, device)
    step = Step(distillation, list(work.batches()), device)
    flops = flops_per_sample(step, work)
    count = operations(distillation, [b.to(device) for b in step.batches])
    kept = saved_bytes(distillation, step.batches[0].to(device)) / work.micro_rows
    gc.collect()
    gc.freeze()
    gc.disable()
    others = options(device, compiler=_compiler(device))
    seconds, memory = compare(step, others, device, work.steps, arguments.rounds)
    gc.unfreeze()
    gc.enable()
    rate = work.batch / statistics.median(seconds["default"])
    found = [
        Figure(f"tiles per second, {_what(work)}", rate, None, "higher", "tiles/s"),
        Figure("FLOPs per sample", flops / 1e9, None, "lower", "GFLOP"),
        Figure("computation rate", rate * flops / 1e12, None, "higher", "TFLOP/s"),
        Figure("peak memory of a step", memory["default"] / 1e9, None, "lower", "GB"),
        Figure("bytes saved of a sample", kept / 1e6, None, "lower", "MB"),
        Figure("operations of a step", sum(count.by_phase.values()), None, "lower", ""),
    ]
    peak = _peak(device)
    if peak:
        found.append(Figure("MFU", rate * flops / peak, None, "higher", "share"))
    on = {option.name: option.on for option in others}
    for name in seconds:
        if name == "default":
            continue
        pair = ("default", name) if on.get(name, False) else (name, "default")
        ratio = median_ratio(seconds, *pair)
        found.append(Figure(f"{name}: time without / with", ratio, None, "higher", "x"))
        if name in memory:
            ratio = memory[pair[0]] / memory[pair[1]]
            found.append(Figure(f"{name}: peak without / with", ratio, None, "higher", "x"))
    return found + loss_figures(work, device, arguments.rounds)


def chosen_work(arguments: argparse.Namespace, cuda: bool, **given: object) -> StepWork:
    """The step that the command line asks for, over the defaults of the device."""
    chosen: dict[str, Any] = {"prototypes": 65536} | (_LARGE if cuda else _SMALL)
    chosen |= _QUICK if arguments.quick else {}
    chosen |= {key: value for key in chosen if (value := getattr(arguments, key)) is not None}
    chosen |= given
    return StepWork(
        "plain",
        batch=chosen["batch"],
        steps=chosen["steps"],
        overrides=[
            f"model.name={chosen['model']}",
            f"head.num_prototypes={chosen['prototypes']}",
            f"data.global_size={chosen['global_size']}",
            f"data.local_size={chosen['local_size']}",
            f"data.local_crops={chosen['local_crops']}",
            f"data.fusion={not arguments.one_modality}",
            f"train.precision={chosen['precision']}",
            f"train.micro_batch={arguments.micro_batch or chosen['batch']}",
        ],
    )


def report_figures(device: torch.device, arguments: argparse.Namespace) -> list[Figure]:
    """All figures of several models and micro-batches, one after the other."""
    cuda = device.type == "cuda"
    arguments.rounds = 1
    began, found = time.monotonic(), []
    for model, batch in _REPORT if cuda else _REHEARSAL:
        if time.monotonic() - began > _BEGIN_UNTIL:
            note(f"{model} with {batch} samples is left out: time is up")
            continue
        note(f"{model}, {batch} samples at once")
        work = chosen_work(arguments, cuda, model=model, batch=batch, steps=5 if cuda else 1)
        try:
            of_one = figures(work, device, arguments)
        except torch.OutOfMemoryError:
            note(f"{model} with {batch} samples does not fit into this GPU")
            of_one = []
        found += [replace(f, name=f"{model}, {batch} at once: {f.name}") for f in of_one]
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    return found


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _compiler(device: torch.device) -> bool:
    """Whether Inductor has what it needs: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return True
    found = any(shutil.which(name) for name in ("g++", "c++", "clang++"))
    if not found:
        note("no C++ compiler: compiled blocks are left out")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (%(default)s)")
    options.add_argument("--model", help="terrafm_small on a CPU, terrafm_base on a GPU")
    options.add_argument("--batch", type=int, help="samples of a step; 2, 64")
    options.add_argument("--micro-batch", type=int, help="samples at once; the whole batch")
    options.add_argument("--prototypes", type=int, help="K; 65536")
    options.add_argument("--global-size", type=int, help="pixels; 96, 224")
    options.add_argument("--local-size", type=int, help="pixels; 48, 96")
    options.add_argument("--local-crops", type=int, help="4, 8")
    options.add_argument("--precision", choices=("float32", "bf16"), help="float32, bf16")
    options.add_argument("--steps", type=int, help="of a round and contestant; 2, 10")
    options.add_argument(
        "--one-modality", action="store_true", help="every view has exactly one modality"
    )
    options.add_argument("--against", type=Path, help="another working tree, step beside step")
    options.add_argument("--report", action="store_true", help="several models and batches")
    arguments = parse(options)
    cuda = torch.cuda.is_available() if arguments.device == "auto" else "cuda" in arguments.device
    device = torch.device(
        ("cuda" if cuda else "cpu") if arguments.device == "auto" else arguments.device
    )
    machine = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} threads"
    data = f"torch {torch.__version__}; {machine}; synthetic batches"
    if arguments.report:
        found = report_figures(device, arguments)
    elif arguments.against:
        work = chosen_work(arguments, cuda)
        found = against(work, str(device), arguments.against, arguments.rounds)
    else:
        found = figures(chosen_work(arguments, cuda), device, arguments)
    report(found, arguments, data)


if __name__ == "__main__":
    main()

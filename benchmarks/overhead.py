"""What Ray Train and DeepSpeed add to a step, and the step against other libraries'.

    python benchmarks/overhead.py [--json] [--peers-python /tmp/peers/bin/python]

A ViT-S on a CPU, one thread a process, small crops (2 x 96 + 4 x 48 px), 32 samples a worker
(the recipes have 16 to 64),
16,384 prototypes, float32. The same synthetic batches for every contestant; a step's time is
from batches in memory to the updated teacher and centers, without data and start-up.

- Ray Train with DeepSpeed ZeRO-1, one worker, against the plain step in one process: time, bar
  1.05.
- Ray Train with DeepSpeed ZeRO-1, two workers, against torchrun with DistributedDataParallel, the
  same student, optimizer and loss: time, bar 1.05.
- Our plain step against lightly's DINO with the same encoder, head sizes, crops of one modality,
  initial weights and AdamW: our tiles/s by theirs, bar 1.0. lightly runs view by view, as its
  example does. The losses of the first step, where the mathematics is equal (one center): bar
  1e-5. Left out where lightly is not installed (see requirements-peers.txt).

Every run is a process tree of its own: a step of warm-up, then the median of --steps steps.
Contestants alternate, --rounds times; a figure is the median of the rounds' ratios.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from common import Figure, alternate, median_ratio, note, parse, parser, report, run_child
from harness.step_work import StepWork

RAY_BAR, DDP_BAR, LIGHTLY_BAR, LOSS_BAR = 1.05, 1.05, 1.0, 1e-5
_SIZES = [
    "model.name=terrafm_small",
    "head.num_prototypes=16384",
    "data.global_size=96",
    "data.local_size=48",
    "data.local_crops=4",
    "train.precision=float32",
    "train.zero_stage=1",
]
_TINY = [
    "model.name=terrafm_tiny",
    "head.num_prototypes=128",
    "head.hidden_dim=64",
    "data.global_size=32",
    "data.local_size=16",
    "data.local_crops=2",
]
# What lightly's DINO has: one sensor, one center, no stochastic depth.
_DINO = ["data.modalities=[s2_l2a]", "loss.alpha=1", "model.drop_path=0"]


def contestants(work: StepWork, with_lightly: bool) -> dict[str, StepWork]:
    """Name -> what it runs."""
    one = replace(work, overrides=[*work.overrides, *_DINO])
    found = {
        "plain": replace(work, name="plain"),
        "ray_1": replace(work, name="ray"),
        "ddp_2": replace(work, name="ddp", workers=2),
        "ray_2": replace(work, name="ray", workers=2),
    }
    if with_lightly:
        found |= {"ours": replace(one, name="plain"), "lightly": replace(one, name="lightly")}
    return found


def measure(runs: dict[str, StepWork], rounds: int, peers_python: str) -> list[Figure]:
    """The ratios, and the seconds behind them."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}

    def once(name: str) -> float:
        python = peers_python if runs[name].name == "lightly" else sys.executable
        # In these trees every process computes alone: parallelism is by process.
        answer = run_child("step_contestant.py", asdict(runs[name]), python=python)
        answers[name].append(answer)
        return float(answer["seconds"])

    results = alternate({name: partial(once, name) for name in runs}, rounds)
    found = [
        Figure(
            "step time, Ray Train and ZeRO-1 with one worker / plain process",
            median_ratio(results, "ray_1", "plain"),
            RAY_BAR,
            "lower",
            "x",
        ),
        Figure(
            "step time, Ray Train and ZeRO-1 with two workers / torchrun DDP",
            median_ratio(results, "ray_2", "ddp_2"),
            DDP_BAR,
            "lower",
            "x",
        ),
        _loss_figure("first loss, ZeRO-1 against plain", answers, "ray_1", "plain"),
        _loss_figure("first loss, ZeRO-1 against DDP", answers, "ray_2", "ddp_2"),
    ]
    if "lightly" in runs:
        ratio = median_ratio(results, "lightly", "ours")
        name = "tiles per second, plain step / lightly's DINO"
        found.append(Figure(name, ratio, LIGHTLY_BAR, "higher", "x"))
        found.append(_loss_figure("first loss, ours against lightly's", answers, "ours", "lightly"))
    return found + [
        Figure(f"seconds of a step, {name}", statistics.median(values), None, "lower", "s")
        for name, values in results.items()
    ]


def _loss_figure(
    name: str, answers: dict[str, list[dict[str, Any]]], left: str, right: str
) -> Figure:
    a, b = (float(answers[side][0]["losses"][0]) for side in (left, right))
    # Not 0: a program that reads figures may divide by them.
    difference = max(abs(a - b) / abs(b), 1e-12)
    return Figure(f"{name}, relative difference", difference, LOSS_BAR, "lower", "share")


def _has_lightly(python: str) -> bool:
    command = [python, "-c", "import lightly.loss, lightly.models.modules"]
    found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not found:
        note(f"{python} has no lightly: left out; requirements-peers.txt says how to install it")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--peers-python", default=sys.executable, help="that has lightly")
    options.add_argument("--batch", type=int, default=32, help="samples of a worker (%(default)s)")
    options.add_argument("--steps", type=int, default=3, help="of a run (%(default)s)")
    options.add_argument("--set", nargs="*", default=[], help="other settings, section.key=value")
    arguments = parse(options)
    overrides = [*_SIZES, *(_TINY if arguments.quick else []), *arguments.set]
    overrides.append(f"train.micro_batch={arguments.batch}")
    steps = 1 if arguments.quick else arguments.steps
    work = StepWork("", batch=arguments.batch, steps=steps, overrides=overrides)
    note(json.dumps(asdict(work)))
    runs = contestants(work, _has_lightly(arguments.peers_python))
    report(measure(runs, arguments.rounds, arguments.peers_python), arguments, "synthetic batches")


if __name__ == "__main__":
    main()

"""What Ray Tune adds to runs: a sweep against the same runs by hand.

    python benchmarks/sweep_overhead.py [--json] [--seconds 60]

Eight points of the demo's recipe, one worker each, two at a time. By hand: `terrafm pretrain`,
`terrafm export`, `terrafm evaluate knn`, one after the other, in two terminals. As a sweep: the
same points as arms. Each run has so many steps as take --seconds alone in one of the two
terminals, found by a run before. The figure is the time of the sweep by the time by hand, from
the command to the last score; the report is in the sweep's time. Bar 1.15.
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Figure, alternate, child_environment, median_ratio, note, parse, parser, report

from terrafm.train.metrics.log import read_metrics

BAR = 1.15
_POINTS, _AT_ONCE = 8, 2
_ARCHIVE = "synthetic:cells=48,seed=0,px=264"
_STEPS_TO_SEE = 24


def settings(steps: int) -> list[str]:
    """Of every run: scored once, at its end."""
    return [
        f"train.steps={steps}",
        f"train.checkpoint_every={steps}",
        "train.log_every=1",
        "data.cpus_per_worker=1",
    ]


def terrafm(*arguments: str) -> None:
    """Runs a command, quietly.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "terrafm", *arguments],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"terrafm {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def overrides(values: Sequence[str]) -> list[str]:
    """As options of the command line."""
    return [part for value in values for part in ("--set", value)]


def one_by_hand(data: str, folder: Path, steps: int, alpha: float) -> None:
    """Pretrains, exports, scores."""
    more = overrides([*settings(steps), f"loss.alpha={alpha}"])
    run, weights = folder / "run", folder / "weights"
    terrafm("pretrain", "--config", "demo", "--data", data, "--output", str(run), *more)
    checkpoint = run / "checkpoints" / f"step_{steps:08d}"
    terrafm("export", "--checkpoint", str(checkpoint), "--output", str(weights),
            "--format", "safetensors")  # fmt: skip
    terrafm("evaluate", "knn", "--weights", str(weights / "terrafm_tiny.safetensors"),
            "--data", data)  # fmt: skip


def in_two_terminals(data: str, folder: Path, steps: int, points: int) -> float:
    """Seconds of all points by hand."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as terminals:
        runs = [
            terminals.submit(one_by_hand, data, folder / str(n), steps, n / max(1, points - 1))
            for n in range(points)
        ]
        for run in runs:
            run.result()
    return time.monotonic() - began


def as_sweep(data: str, folder: Path, steps: int, points: int) -> float:
    """Seconds of the sweep of the same points."""
    shutil.rmtree(folder, ignore_errors=True)
    arms = ", ".join(f"p{n}: {{loss.alpha: {n / max(1, points - 1)}}}" for n in range(points))
    more = [*settings(steps), f"tune.arms={{{arms}}}", f"tune.max_concurrent={_AT_ONCE}"]
    began = time.monotonic()
    terrafm("sweep", "--config", "demo", "--data", data, "--output", str(folder), *overrides(more))
    return time.monotonic() - began


def steps_for(seconds: float, data: str, folder: Path) -> int:
    """Steps that take so long while another run does the same beside it."""
    in_two_terminals(data, folder, _STEPS_TO_SEE, _AT_ONCE)
    rates = []
    for number in range(_AT_ONCE):
        lines = read_metrics(str(folder / str(number) / "run"))
        # The first steps wait for the first data.
        rates.append(statistics.median(32 / line["tiles_per_second"] for line in lines[4:]))
    return max(1, round(seconds / max(rates)))


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--seconds", type=float, default=60, help="of training (%(default)s)")
    arguments = parse(options)
    work = Path(arguments.work) / "sweep-overhead"
    work.mkdir(parents=True, exist_ok=True)
    data = work / "tiles"
    if not (data / "manifest.json").exists():
        terrafm("ingest", "--source", "synthetic", "--input", _ARCHIVE, "--output", str(data),
                "--tile-size", "132")  # fmt: skip
    points = 2 if arguments.quick else _POINTS
    steps = 4 if arguments.quick else steps_for(arguments.seconds, str(data), work / "probe")
    note(f"{points} runs of {steps} steps")
    results = alternate(
        {
            "hand": lambda: in_two_terminals(str(data), work / "hand", steps, points),
            "sweep": lambda: as_sweep(str(data), work / "sweep", steps, points),
        },
        arguments.rounds,
    )
    figures = [
        Figure("sweep / the same runs by hand", median_ratio(results, "sweep", "hand"), BAR,
               "lower", "x"),
        *(Figure(f"seconds, {name}", statistics.median(values), None, "lower", "s")
          for name, values in results.items()),
    ]  # fmt: skip
    report(figures, arguments, "synthetic Earth")


if __name__ == "__main__":
    main()

"""What all benchmarks share: options, alternating runs, figures as a table or as JSON lines."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured, and under which assumption.
        value: the measurement.
        bar: what it has to reach; None where it only explains another figure.
        better: "higher" or "lower".
        unit: of value and bar; "x" for a ratio.
    """

    name: str
    value: float
    bar: float | None
    better: Literal["higher", "lower"]
    unit: str

    @property
    def verdict(self) -> str:
        """Whether the bar is reached; empty without one."""
        if self.bar is None:
            return ""
        reached = self.value >= self.bar if self.better == "higher" else self.value <= self.bar
        return "reached" if reached else "MISSED"


def parser(doc: str, rounds: int = 3) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--json", action="store_true", help="one JSON object a line, no table")
    options.add_argument("--quick", action="store_true", help="tiny: does it run, not how fast")
    options.add_argument(
        "--rounds", type=int, default=rounds, help="alternating runs (%(default)s)"
    )
    options.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "terrafm-benchmarks",
        help="folder for the test tiles, made once and used again (%(default)s)",
    )
    options.add_argument(
        "--real",
        type=Path,
        default=ROOT.parent / "shared" / "realdata",
        help="folder of real samples; where it is absent, pixels are synthetic (%(default)s)",
    )
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; --quick means a single round."""
    arguments = options.parse_args()
    if arguments.rounds < 1:
        options.error("--rounds must be at least 1")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def alternate(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Runs all contestants once per round, one after the other; slow drift then hits all alike."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            results[name].append(run())
            note(f"round {number + 1} of {rounds}: {name} {results[name][-1]:.4g}")
    return results


def median_ratio(results: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """Median over the rounds of one contestant's result by another's of the same round."""
    pairs = zip(results[above], results[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def run_child(
    script: str,
    request: Mapping[str, Any],
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> dict[str, Any]:
    """Runs a script of the harness in a fresh process.

    Args:
        script: file under benchmarks/harness.
        request: its only argument, as JSON.
        python: interpreter.
        environment: variables on top of this process's.
        timeout: seconds.

    Returns:
        The JSON object in the last line of its output.
    """
    done = subprocess.run(
        [python, str(BENCHMARKS / "harness" / script), json.dumps(request)],
        env=child_environment() | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-25:])
        raise SystemExit(f"{script} {request} ended with exit code {done.returncode}:\n{tail}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child_environment() -> dict[str, str]:
    """Variables of a contestant's process tree."""
    paths = [str(ROOT), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Parallelism is by process for every contestant.
        "OMP_NUM_THREADS": "1",
        # Ray's workers run at nice 15 by default: no fair race against plain processes.
        "RAY_worker_niceness": "0",
    }


def machine(data: str = "") -> str:
    """Processor, CPUs and memory of this machine, and what the pixels were."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return "; ".join(filter(None, [f"{model}, {cpus} CPUs, {memory:.0f} GiB", data]))


def report(figures: Sequence[Figure], arguments: argparse.Namespace, data: str = "") -> None:
    """Prints the figures: JSON lines with --json, else a table."""
    where = machine(data)
    if arguments.json:
        for figure in figures:
            rounded = asdict(figure) | {"value": float(f"{figure.value:.5g}")}
            print(json.dumps(rounded | {"machine": where}), flush=True)
        return
    print(where)
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        sign = ">=" if figure.better == "higher" else "<="
        bar = "" if figure.bar is None else f"{sign} {figure.bar:g}"
        line = f"{figure.name:<{width}}  {figure.value:>10.4g} {figure.unit:<8} {bar:<9}"
        print(f"{line} {figure.verdict}".rstrip())


def note(text: str) -> None:
    """Progress, on the error stream: the figures alone go to standard output."""
    print(text, file=sys.stderr, flush=True)

"""From Enter to the line that tells of a mistake, for many mistakes.

    python benchmarks/mistakes.py [--against FOLDER] [--json]

FOLDER is another working tree of this project: the same commands run in it, alternating.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT, Figure, alternate, note, parse, parser, report
from harness.mistakes import MISTAKES, Mistake, Places

SECONDS = 2.0


def main() -> None:
    """Prepares the places, times every mistake, prints."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--against", type=Path, help="another working tree")
    arguments = parse(options)
    places = _places(arguments.work / "mistakes")
    trees = {"here": ROOT} | ({"against": arguments.against.resolve()} if arguments.against else {})
    chosen = MISTAKES[:3] if arguments.quick else MISTAKES
    figures, medians = [], []
    for mistake in chosen:
        runs = {name: _timed(mistake, places, tree) for name, tree in trees.items()}
        seconds = alternate(runs, arguments.rounds)
        here = statistics.median(seconds["here"])
        medians.append(here)
        title = mistake.name
        if "against" in seconds:
            title += f" (there {statistics.median(seconds['against']):.1f} s)"
        figures.append(Figure(title, here, None, "lower", "s"))
    figures.append(Figure("the slowest", max(medians), SECONDS, "lower", "s"))
    figures.append(Figure("all together", sum(medians), None, "lower", "s"))
    report(figures, arguments, f"{len(chosen)} mistakes")


def _timed(mistake: Mistake, places: Places, tree: Path) -> Callable[[], float]:
    environment = os.environ | {"PYTHONPATH": str(tree)}

    def run() -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "terrafm", *mistake.words(places)],
            cwd=tree, env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if tree == ROOT and (done.returncode != 2 or mistake.said not in done.stdout + done.stderr):
            raise SystemExit(f"{mistake.name}: {done.returncode}, {done.stderr}")
        return seconds

    return run


def _places(folder: Path) -> Places:
    places = Places.below(folder)
    if not (places.dataset / "manifest.json").exists():
        note("ingest of a small dataset")
        places.prepare()
    return places


if __name__ == "__main__":
    main()

"""Several plain trainings, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from common import note, run_child

from harness.plain_training import Training

_LONGEST = 4 * 3600.0


def train_all(
    trainings: Sequence[Training], work: Path, jobs: int, peers_python: str | None = None
) -> None:
    """Trains what has not been trained under `work` yet.

    Args:
        trainings: what is trained.
        work: folder of the encoders.
        jobs: processes at once, one thread each.
        peers_python: interpreter that has lightly, for its trainings.
    """

    def one(training: Training) -> None:
        peer = training.objective == "lightly" and peers_python
        request = asdict(training) | {"folder": str(training.folder(work))}
        python = peer or sys.executable
        said = run_child("plain_training.py", request, python=python, timeout=_LONGEST)
        seconds = said["lines"][-1]["seconds"]
        note(f"{training.name}, seed {training.seed}: trained in {seconds:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, trainings))

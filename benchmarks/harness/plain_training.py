"""A pretraining in one plain process: neither Ray nor DeepSpeed."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.objectives import OBJECTIVES
from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.models.encoder import Encoder
from terrafm.models.weights import save_safetensors
from terrafm.train.worker.setup import TrainingSetup

_SAID = "trained.json"


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        name: of the contestant, and of its folder.
        data: URI of the dataset.
        recipe: of the package, or a file.
        overrides: of it, "section.key=value".
        seed: of everything random.
        objective: one of `OBJECTIVES`.
        every: steps between the encoders that are kept; the last one always is.
    """

    name: str
    data: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    objective: str
    every: int

    def folder(self, work: Path) -> Path:
        """Where its encoders lie."""
        return work / "runs" / f"{self.name}-{self.seed}"


@dataclass(frozen=True)
class Reached:
    """A point of a training.

    Attributes:
        step: finished steps.
        seconds: since the first step began.
        encoder: what a user would keep; it goes on to change with the training.
        line: what the last step said of itself.
    """

    step: int
    seconds: float
    encoder: Encoder
    line: dict[str, float]


def train(setup: TrainingSetup, every: int, objective: str = "distillation") -> Iterator[Reached]:
    """Trains to the configured last step, and stops on the way each so many steps.

    Raises:
        SystemExit: a step was not finite.
    """
    trained = OBJECTIVES[objective](setup)
    layout = setup.layout(0, 1)
    batches = make_batches(**setup.stream_options(layout, 0))
    seconds = 0.0
    for step in range(setup.total_steps):
        began = time.perf_counter()
        micro = list(itertools.islice(batches, layout.n_micro))
        line = trained.step(micro, setup.schedules.at(step))
        seconds += time.perf_counter() - began
        done = step + 1
        if done % every == 0 or done == setup.total_steps:
            yield Reached(done, seconds, trained.encoder, line)


def keep_encoders(training: Training, folder: Path) -> None:
    """Trains, and writes the encoders `step_00000100.safetensors`, ... and what each step said.

    A training that has been done is not done again.
    """
    said = folder / _SAID
    wanted = {"recipe": training.recipe, "overrides": list(training.overrides)}
    if said.exists() and json.loads(said.read_text())["wanted"] == wanted:
        return
    said.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(training.recipe, [*training.overrides, f"train.seed={training.seed}"])
    setup = TrainingSetup.open(config, training.data)
    lines = []
    for reached in train(setup, training.every, training.objective):
        uri = str(folder / f"step_{reached.step:08d}.safetensors")
        save_safetensors(uri, reached.encoder.state_dict(), setup.contract)
        lines.append({"step": reached.step, "seconds": reached.seconds, **reached.line})
    said.write_text(json.dumps({"wanted": wanted, "lines": lines}))


def main() -> None:
    """A child of learning.py: trains what its only argument says."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    request = json.loads(sys.argv[1])
    folder = Path(request.pop("folder"))
    request["overrides"] = tuple(request["overrides"])
    keep_encoders(Training(**request), folder)
    print((folder / _SAID).read_text().replace("\n", " "))


if __name__ == "__main__":
    main()

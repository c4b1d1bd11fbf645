"""Training time lost to saving terrafm_base, asynchronous against synchronous.

    python benchmarks/checkpoint_stall.py [--json] [--step-seconds 0.5]

Real steps of terrafm_base (one sample, the recipe's crops, float32, --threads threads) and its
real state of 65,536 prototypes, written to --work with the run's own writer.

- A step: alone.
- Synchronous: the time from the snapshot to the complete checkpoint, in which nothing is trained.
- Asynchronous: the time of the snapshot, in which nothing is trained, and by how much the steps
  take longer while the checkpoint is written beside them, until it is complete.

Lost time is that of one checkpoint by the time between two, --every steps and itself. The step's
time is the one measured here, or --step-seconds. The assumption that limits the answer: one
thread trains on this machine's processor and leaves the others to the writer, as a rank beside
its GPU would; the disk is this machine's, and on a GPU the copy to the host comes on top in both
cases. Between checkpoints the writer must come to its end: where it takes longer than --every
steps, the training waits for it, and that is counted.
"""

import argparse
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Figure, alternate, median_ratio, note, parse, parser, report
from harness.tiles import prepare

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.checkpoints.exported import export_last
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.store import CHECKPOINTS
from terrafm.train.checkpoints.writer import CheckpointWriter
from terrafm.train.run_folder import RunFolder
from terrafm.train.worker.setup import TrainingSetup

_QUICK = [
    *("model.name=terrafm_tiny", "head.num_prototypes=256", "head.hidden_dim=64"),
    *("data.local_crops=0", "data.global_size=32"),
]


class Training:
    """A run's steps and checkpoints in this process, without Ray and DeepSpeed.

    Args:
        dataset: URI of the test tiles.
        folder: where checkpoints go.
        quick: a tiny model.
    """

    def __init__(self, dataset: str, folder: Path, quick: bool) -> None:
        few = ["train.global_batch=1", "train.micro_batch=1", "train.precision=float32"]
        self._setup = TrainingSetup.open(
            load_config("base_64gpu", [*few, *(_QUICK if quick else [])]), dataset
        )
        self._distillation = self._setup.plain_distillation()
        layout = self._setup.layout(0, 1)
        batches = make_batches(**self._setup.stream_options(layout, 0))
        # Read once: the data plane is no part of this.
        self._batch = list(itertools.islice(batches, layout.n_micro))
        self._settings = self._setup.schedules.at(self._setup.total_steps // 2)
        self._folder = folder / CHECKPOINTS
        self._done = 0

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self._distillation.forward_backward(self._batch, self._settings)
        self._distillation.finish(self._settings)
        return time.perf_counter() - began

    def save(self, writer: CheckpointWriter) -> float:
        """Seconds that the training stands still."""
        began = time.perf_counter()
        writer.wait()
        self._done += 1
        engine = self._distillation.engine.state()
        assert engine is not None
        writer.save(self._setup.state(self._done, engine, self._distillation))
        return time.perf_counter() - began

    def export(self) -> float:
        """Seconds to write the weights of a checkpoint."""
        engine = self._distillation.engine.state()
        assert engine is not None
        state = self._setup.state(self._done, engine, self._distillation)
        began = time.perf_counter()
        export_last(str(self._folder.parent), state)
        return time.perf_counter() - began

    def exported_gigabytes(self) -> float:
        """Of the weights on the disk."""
        return Path(RunFolder(str(self._folder.parent)).exported("last")).stat().st_size / 1e9

    def gigabytes(self) -> float:
        """Of the checkpoints on the disk."""
        return sum(path.stat().st_size for path in self._folder.glob("*/*")) / 1e9

    def writer(self, background: bool) -> CheckpointWriter:
        """The run's writer, which keeps one checkpoint."""
        return CheckpointWriter(
            str(self._folder),
            Retention(last=1),
            write_records=lambda: None,
            export=partial(export_last, str(self._folder.parent)),
            max_failed=1,
            background=background,
        )


def measure(training: Training, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of a step and lost to a checkpoint, and until an asynchronous one is whole."""
    alone = 0.0
    whole: list[float] = []

    def step() -> float:
        nonlocal alone
        alone = statistics.mean(training.step() for _ in range(2))
        return alone

    def synchronous() -> float:
        writer = training.writer(background=False)
        lost = training.save(writer)
        writer.close()
        return lost

    def snapshot_and_slower_steps() -> float:
        writer = training.writer(background=True)
        began = time.perf_counter()
        lost = training.save(writer)
        note(f"snapshot {lost:.3g} s")
        while writer.busy:
            lost += training.step() - alone
        whole.append(time.perf_counter() - began)
        writer.close()
        return max(lost, 0.0)

    contestants: dict[str, Callable[[], float]] = {
        "step": step,
        "synchronous": synchronous,
        "asynchronous": snapshot_and_slower_steps,
    }
    return alternate(contestants, rounds), whole


def share(lost: float, write: float, step: float, every: int) -> float:
    """Part of all time that one checkpoint every so many steps costs."""
    between = every * step
    # The next snapshot waits for a writer that is still at work.
    lost += max(0.0, write - lost - between)
    return lost / (between + lost)


def figures(training: Training, arguments: argparse.Namespace) -> list[Figure]:
    """Measures, and relates a checkpoint to the steps between two."""
    training.step()
    results, whole = measure(training, arguments.rounds)
    middle = {name: statistics.median(values) for name, values in results.items()}
    step, origin = arguments.step_seconds, "given"
    if step is None:
        step, origin = middle["step"], "measured"
    write = statistics.median(whole)
    label = f"time lost to saving every {arguments.every} steps of {step:.3g} s ({origin})"
    slow, fast = middle["synchronous"], middle["asynchronous"]
    return [
        Figure(
            f"{label}, asynchronous",
            100 * share(fast, write, step, arguments.every),
            None,
            "lower",
            "%",
        ),
        Figure(
            f"{label}, synchronous",
            100 * share(slow, 0.0, step, arguments.every),
            None,
            "lower",
            "%",
        ),
        Figure(
            "a checkpoint's lost time, asynchronous / synchronous",
            median_ratio(results, "asynchronous", "synchronous"),
            None,
            "lower",
            "x",
        ),
        Figure("lost to a checkpoint, asynchronous", fast, None, "lower", "s"),
        Figure("lost to a checkpoint, synchronous", slow, None, "lower", "s"),
        Figure("until an asynchronous one is complete", write, None, "lower", "s"),
        Figure("a checkpoint", training.gigabytes(), None, "lower", "GB"),
        Figure(
            "of that to write the weights into exported/",
            statistics.median(training.export() for _ in range(arguments.rounds)),
            None,
            "lower",
            "s",
        ),
        Figure("the exported weights", training.exported_gigabytes(), None, "lower", "GB"),
        Figure("measured: a step of one sample", middle["step"], None, "lower", "s"),
    ]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--every", type=int, default=100, help="steps (%(default)s)")
    options.add_argument(
        "--step-seconds", type=float, help="of a step, in place of the one measured here"
    )
    options.add_argument("--threads", type=int, default=1, help="that train (%(default)s)")
    arguments = parse(options)
    torch.set_num_threads(arguments.threads)
    made = prepare(arguments.work, arguments.real, 4)
    folder = arguments.work / "checkpoint-stall"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        training = Training(made.dataset, folder, arguments.quick)
        report(figures(training, arguments), arguments, made.data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

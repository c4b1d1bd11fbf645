"""A run on a cluster of two nodes of this machine, and the faults that it has to survive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import ROOT

from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.driver.events import read_events
from terrafm.train.metrics.log import read_metrics

sys.path.insert(0, str(ROOT / "tests" / "integration"))

import clusters  # type: ignore[import-not-found]

PATIENCE_SECONDS = 180.0
SETTINGS = (
    "train.workers=[1,2]",
    # Of a node with two logical CPUs: each node holds one worker.
    "train.cpus_per_worker=1.5",
    "train.resize_interval=5",
    "train.standby=true",
    "train.max_failures=8",
    "train.precision=float32",
    "train.audit_samples=true",
    "train.log_every=1",
)


class ElasticRun:
    """The command `terrafm pretrain` on the cluster, and its second node.

    Args:
        made: the cluster, of a head alone.
        data: URI of the dataset.
        output: the run's folder.
        settings: on top of `SETTINGS`.
    """

    def __init__(self, made: Any, data: str, output: Path, settings: tuple[str, ...]) -> None:
        self._made = made
        self.output = output
        self._settings = (*SETTINGS, *settings)
        self._data = data
        self._node: Any = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the command, or starts it again."""
        overrides = [part for setting in self._settings for part in ("--set", setting)]
        with open(self.output.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "terrafm", "pretrain", "--config", "demo"),
                    *("--data", self._data, "--output", str(self.output), *overrides),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | clusters.environment(self._made) | {"PYTHONPATH": str(ROOT)},
            )

    def step(self) -> int:
        """Finished steps, as metrics.jsonl says."""
        lines = read_metrics(str(self.output))
        return int(lines[-1]["step"]) if lines else 0

    def checkpoint(self) -> int:
        """Step of the newest checkpoint."""
        return max([0, *(s for s, _ in list_checkpoints(str(self.output / "checkpoints")))])

    def wait_for_step(self, step: int) -> None:
        """Waits until `step` steps are done."""
        self._wait(lambda: self.step() >= step, f"step {step}")

    def seconds_to_training(self, since: float, workers: int | None = None) -> float:
        """Waits until a group, of so many workers, has done its first step after `since`."""
        found: list[dict[str, Any]] = []

        def training() -> bool:
            found[:] = [
                event
                for event in read_events(str(self.output))
                if event["event"] == "training"
                and event["time"] > since
                and workers in (None, event["workers"])
            ]
            return bool(found)

        self._wait(training, f"training of {workers or 'any'} workers")
        return float(found[0]["time"]) - since

    def kill_worker(self, rank: int = -1) -> float:
        """SIGKILL of one training process; returns when."""
        os.kill(clusters.training_workers()[rank].pid, signal.SIGKILL)
        return time.time()

    def add_node(self) -> float:
        """A machine comes; returns when."""
        self._node = self._made.add_node(num_cpus=2)
        return time.time()

    def lose_node(self) -> float:
        """SIGKILL of all of the second node; returns when."""
        moment = time.time()
        clusters.lose(self._made, self._node)
        self._node = None
        return moment

    def take_node_away(self, notice: float) -> float:
        """A spot notice, and the node's end when it said; returns when the notice came."""
        moment = time.time()
        clusters.drain(self._made, self._node, int(notice))
        time.sleep(max(0.0, moment + notice - time.time()))
        clusters.lose(self._made, self._node)
        self._node = None
        return moment

    def restart(self) -> float:
        """SIGKILL of the command; the same command again once its workers are gone."""
        assert self.process is not None
        moment = time.time()
        self.process.kill()
        self.process.wait()
        clusters.wait_until(lambda: not clusters.training_workers(), "the workers' end")
        self.start()
        return moment

    @property
    def has_node(self) -> bool:
        """Whether the second node is there."""
        return self._node is not None

    def _wait(self, condition: Any, what: str) -> None:
        clusters.wait_until(condition, what, self.process, PATIENCE_SECONDS)


@contextmanager
def elastic_run(data: str, output: Path, *settings: str) -> Iterator[ElasticRun]:
    """A run that has started on one node; its command is ended in the end."""
    with clusters.cluster(2) as made:
        run = ElasticRun(made, data, output, settings)
        run.start()
        try:
            yield run
        finally:
            if run.process is not None:
                run.process.kill()
                run.process.wait()

"""What a run writes while it goes: metrics.jsonl and trackers.

Both forget what lies past the step a run resumes from, so that they always tell the surviving
history, once.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from terrafm.storage import is_local, read_json_lines, resolve, write_bytes, write_json_lines
from terrafm.storage.faults import explain
from terrafm.storage.local import check_replaceable
from terrafm.storage.records import StepLine
from terrafm.train.metrics.tracker_clients import open_trackers
from terrafm.train.metrics.trackers import TrackedRun
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)


def read_metrics(run_folder: str) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order."""
    return read_json_lines(RunFolder(run_folder).metrics, kind=StepLine)


class MetricsLog:
    """metrics.jsonl and the trackers of one run, written by rank 0.

    A line that a full disk does not take waits for the next one: it costs no training.

    Args:
        run_folder: URI of the run.
        start_step: finished steps of the state the run goes on from; later lines go.
        trackers: names of `train.trackers`.
        config: the configuration tree as plain values, for the trackers.

    Attributes:
        newest: the last line, empty where there is none.
    """

    def __init__(
        self,
        run_folder: str,
        start_step: int,
        trackers: Sequence[str] = ("tensorboard",),
        config: dict[str, Any] | None = None,
    ) -> None:
        kept = [line for line in read_metrics(run_folder) if line["step"] <= start_step]
        self._lines = [json.dumps(line) + "\n" for line in kept]
        self.newest: dict[str, Any] = kept[-1] if kept else {}
        self._run = RunFolder(run_folder)
        self._uri = self._run.metrics
        write_json_lines(self._uri, kept)
        self._file: _LocalLines | None = None
        if is_local(run_folder):
            self._file = _LocalLines(resolve(self._uri)[1])
        self._trackers = open_trackers(trackers, TrackedRun(run_folder, start_step, config or {}))

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends one line; `metrics["step"]` counts finished steps.

        Trackers get its numbers, and know the time by themselves. A number that is not finite
        stands as null, since JSON has none.
        """
        numbers = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in ("step", "time")
        }
        for tracker in self._trackers.values():
            tracker.write(metrics["step"], numbers)
        off = {n: tracker.failure for n, tracker in self._trackers.items() if tracker.failure}
        lost = dict.fromkeys(name for name, value in numbers.items() if not math.isfinite(value))
        self.newest = metrics | lost | ({"trackers_off": off} if off else {})
        line = json.dumps(self.newest) + "\n"
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.add(line)
            with suppress(OSError):
                self._file.write()

    def write_weights(self, step: int, name: str) -> None:
        """Gives the trackers that want them weights of the run's `exported/`.

        Args:
            step: finished steps of the checkpoint that they are of.
            name: of the weights, "last" or "best".
        """
        for tracker in self._trackers.values():
            tracker.write_weights(step, self._run.exported(name))

    def flush(self) -> None:
        """Makes all lines visible; object stores take no appends, so they get whole files.

        May run in a thread beside `write`: it shows the lines that were there when it began.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take them.
        """
        for tracker in self._trackers.values():
            tracker.flush()
        if self._file is None:
            write_bytes(self._uri, "".join(self._lines).encode())
            return
        try:
            self._file.write()
        except OSError as error:
            raise explain(error, "write", self._uri) from None

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers.values():
            tracker.close()


class _LocalLines:
    """A file that lines are appended to; what it does not take is kept and goes before the next.

    Unbuffered, so that it is known how much of a line was taken.
    """

    def __init__(self, path: str) -> None:
        check_replaceable(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - close()
        self._waiting = b""
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Takes a line in."""
        with self._lock:
            self._waiting += line.encode()

    def write(self) -> None:
        """Appends what waits.

        Raises:
            OSError: the disk does not take all of it.
        """
        with self._lock:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

"""What a run writes while it goes: metrics.jsonl and TensorBoard.

Both forget what lies past the step a run resumes from, so that they always tell the surviving
history, once.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from terrafm.storage import exists, is_local, join, read_bytes, resolve, upload, write_bytes
from terrafm.storage.faults import explain, one_line

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_folder: str) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order."""
    uri = join(run_folder, METRICS_FILE)
    if not exists(uri):
        return []
    lines = []
    for line in read_bytes(uri).decode().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            # A killed writer may leave the start of a line.
            break
    return lines


class MetricsLog:
    """metrics.jsonl and TensorBoard of one run, written by rank 0.

    A line that a full disk does not take waits for the next one: it costs no training.

    Args:
        run_folder: URI of the run.
        start_step: finished steps of the state the run goes on from; later lines go.

    Attributes:
        newest: the last line, empty where there is none.
    """

    def __init__(self, run_folder: str, start_step: int) -> None:
        self._folder = run_folder
        kept = [line for line in read_metrics(run_folder) if line["step"] <= start_step]
        self._lines = [json.dumps(line) + "\n" for line in kept]
        self.newest: dict[str, Any] = kept[-1] if kept else {}
        self._uri = join(run_folder, METRICS_FILE)
        write_bytes(self._uri, "".join(self._lines).encode())
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if is_local(run_folder):
            self._file: _LocalLines | None = _LocalLines(resolve(self._uri)[1])
            board = resolve(join(run_folder, "tensorboard"))[1]
        else:
            self._file = None
            self._temporary = tempfile.TemporaryDirectory()
            board = self._temporary.name
        self._board = _Board(board, start_step + 1 if start_step else None)

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends one line; `metrics["step"]` counts finished steps."""
        line = json.dumps(metrics) + "\n"
        self.newest = metrics
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.add(line)
            with suppress(OSError):
                self._file.write()
        self._board.write(metrics)

    def flush(self) -> None:
        """Makes all lines visible; object stores take no appends, so they get whole files.

        May run in a thread beside `write`: it shows the lines that were there when it began.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take them.
        """
        self._board.flush()
        if self._file is not None:
            try:
                self._file.write()
            except OSError as error:
                raise explain(error, "write", self._uri) from None
        if self._temporary is not None:
            write_bytes(self._uri, "".join(self._lines).encode())
            for event_file in Path(self._temporary.name).iterdir():
                upload(event_file, join(self._folder, "tensorboard", event_file.name))

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._board.close()
        if self._file is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.cleanup()


class _LocalLines:
    """A file that lines are appended to; what it does not take is kept and goes before the next.

    Unbuffered, so that it is known how much of a line was taken.
    """

    def __init__(self, path: str) -> None:
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


class _Board:
    """TensorBoard's picture of metrics.jsonl: a disk that fails costs it points, not the run."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = SummaryWriter(folder, purge_step=purge_step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Draws all values but the step."""
        with self._forgiving():
            for name, value in metrics.items():
                if name != "step" and self._writer is not None:
                    self._writer.add_scalar(name, value, metrics["step"])

    def flush(self) -> None:
        """Makes all points visible; after a failure it begins another file."""
        with self._forgiving():
            if self._writer is None:
                self._writer = SummaryWriter(self._folder)
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with self._forgiving():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writer is not None:
                logger.warning("TensorBoard misses points: %s", one_line(error))
            self._writer = None

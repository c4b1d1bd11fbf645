"""What a tracker of metrics is, and how one on a server is kept from disturbing a run.

No tracker may cost a run its training: those on a server are written to by a thread of their
own; one that fails is left alone from then on, and the run's lines say so.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import read_json, write_bytes
from terrafm.storage.addresses import recorded, without_secrets
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

_MOST_WAITING = 1000  # lines that a slow server may be behind
_CLOSE_SECONDS = 60.0


def check_trackers(names: Sequence[str]) -> None:
    """Makes sure that the packages are there before anything starts.

    Raises:
        UsageError: one of them is not.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        # A folder of that name in the working directory, such as wandb's own, has no origin.
        if spec is None or spec.origin is None:
            raise UsageError(
                f"train.trackers names {name}, whose package is not installed: "
                f"pip install 'terrafm[{name}]', or take it off the list"
            )


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run.

    Attributes:
        folder: URI of the run.
        start_step: finished steps of the state it goes on from.
        config: the configuration tree as plain values.
        part: of what is written by another process than the ranks', such as "validation".
    """

    folder: str
    start_step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    part: str = ""

    @property
    def name(self) -> str:
        """The last part of the folder's URI, and the part."""
        last = self.folder.rstrip("/").rpartition("/")[2]
        return f"{last} {self.part}" if self.part else last

    def parameters(self) -> dict[str, Any]:
        """Dotted key -> value of the configuration, and the folder, as they may be recorded."""
        dotted = {
            f"{section}.{key}": value
            for section, values in self.config.items()
            for key, value in values.items()
        }
        found: dict[str, Any] = recorded({**dotted, "output": self.folder})
        return found

    def known_id(self, tracker: str) -> str | None:
        """The id under which a tracker knows this run since an earlier start."""
        found = self._ids().get(tracker)
        return None if found is None else str(found)

    def remember_id(self, tracker: str, run_id: str) -> None:
        """Keeps it in the run's folder, so that a restarted run goes on in the same place."""
        document = json.dumps(self._ids() | {tracker: run_id}, indent=1) + "\n"
        write_bytes(RunFolder(self.folder).trackers, document.encode())

    def _ids(self) -> dict[str, Any]:
        try:
            return read_json(RunFolder(self.folder).trackers, "the run begins anew there") or {}
        except TerraFMError as error:
            # No tracker may cost a run its training.
            logger.warning("%s", error)
            return {}


class Tracker(ABC):
    """Takes the numbers of a run's lines."""

    failure: str | None = None
    """Why it stopped taking them; None while it works."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one line's numbers; `step` counts finished steps."""

    @abstractmethod
    def flush(self) -> None:
        """Makes what was taken visible."""

    @abstractmethod
    def close(self) -> None:
        """Flushes and ends."""


class Background(Tracker):
    """A tracker on a server, run by a thread: slow or away, it costs no step anything.

    Args:
        name: of the tracker.
        run: what is tracked.
        start: makes the tracker, in the thread.
        close_seconds: how long `close` waits for what is still on its way.
    """

    def __init__(
        self,
        name: str,
        run: TrackedRun,
        start: Callable[[TrackedRun], Tracker],
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        self._name = name
        self._run = run
        self._start = start
        self._close_seconds = close_seconds
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @override
    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:
            self.failure = self.failure or f"it is {_MOST_WAITING} lines behind"
        if self.failure is None:
            self._waiting.put((step, values))

    @override
    def flush(self) -> None:
        """Nothing: the thread sends as it goes."""

    @override
    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self.failure = self.failure or f"it did not end within {self._close_seconds:g} s"
        if self.failure is not None:
            logger.warning("%s has not got all metrics: %s", self._name, self.failure)

    def _work(self) -> None:
        try:
            tracker = self._start(self._run)
            while (line := self._waiting.get()) is not None and self.failure is None:
                tracker.write(*line)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - whatever a client raises, training goes on
            text = str(error).strip().splitlines()
            name = type(error).__name__
            # A client may name its server as it was given, with user and password.
            self.failure = without_secrets(f"{name}: {text[0]}" if text else name)

"""What a tracker of metrics is, and how one on a server is kept from disturbing a run.

No tracker may cost a run its training: those on a server are written to by a thread of their
own; one that fails is left alone from then on, and the run's lines say so. One that takes the
numbers but no pictures, or no weights, keeps the numbers.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import download, read_json, write_bytes
from terrafm.storage.addresses import recorded, without_secrets
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

_MOST_WAITING = 1000  # lines that a slow server may be behind
_CLOSE_SECONDS = 60.0
# Of weights that are on their way when a process ends, besides.
_WEIGHTS_SECONDS = 300.0
WITH_WEIGHTS = "+weights"


def check_trackers(names: Sequence[str]) -> None:
    """Makes sure that the packages are there before anything starts.

    Args:
        names: of `train.trackers`.

    Raises:
        UsageError: one of them is not.
    """
    for name in map(tracker_of, names):
        spec = importlib.util.find_spec(name)
        # A folder of that name in the working directory, such as wandb's own, has no origin.
        if spec is None or spec.origin is None:
            raise UsageError(
                f"train.trackers names {name}, whose package is not installed: "
                f"pip install 'terrafm[{name}]', or take it off the list"
            )


def tracker_of(name: str) -> str:
    """The tracker that an entry of `train.trackers` names, with or without the weights."""
    return name.removesuffix(WITH_WEIGHTS)


@dataclass(frozen=True)
class TrackedPicture:
    """A picture of what a run has learned.

    Attributes:
        group: of pictures of one kind, such as "tiles".
        title: of the picture, the same at every step.
        content: of a PNG or JPEG file.
        alt: what a person sees on it, in words.
        note: below it.
    """

    group: str
    title: str
    content: bytes
    alt: str
    note: str = ""

    @property
    def name(self) -> str:
        """Group and title in characters that every tracker takes."""
        return f"{self.group}/{re.sub(r'[^a-z0-9]+', '_', self.title.lower()).strip('_')}"

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) red, green, blue."""
        # Only a process that has pictures needs what reads them.
        import cv2

        image = cv2.imdecode(np.frombuffer(self.content, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        return np.asarray(image[..., ::-1], np.uint8)


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

    @property
    def patience(self) -> float:
        """Seconds that nothing may take, lest the run's workers pass for hung ones."""
        return float(self.config.get("train", {}).get("hang_timeout", 600)) / 2

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
    """Takes the numbers of a run's lines, pictures, and weights where it has a place for them."""

    failure: str | None = None
    """Why it stopped taking them; None while it works."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one line's numbers; `step` counts finished steps."""

    @abstractmethod
    def write_pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        """Takes pictures of the checkpoint after so many steps."""

    @abstractmethod
    def write_weights(self, step: int, weights: str) -> None:
        """Takes exported weights, unless it has no place for them or was not asked to.

        Args:
            step: finished steps of the checkpoint that they are of.
            weights: URI of their file, which the next ones replace.
        """

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
        weights: whether it is given weights.
        close_seconds: how long `close` waits for what is still on its way.
        weights_seconds: how much longer, while weights are on their way.
    """

    def __init__(
        self,
        name: str,
        run: TrackedRun,
        start: Callable[[TrackedRun], Tracker],
        *,
        weights: bool = False,
        close_seconds: float = _CLOSE_SECONDS,
        weights_seconds: float = _WEIGHTS_SECONDS,
    ) -> None:
        self._name = name
        self._run = run
        self._start = start
        self._takes_weights = weights
        self._close_seconds = close_seconds
        self._weights_seconds = min(weights_seconds, run.patience)
        self._newest_weights = 0
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @override
    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._hand_over(lambda tracker: tracker.write(step, values))

    @override
    def write_pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        def send(tracker: Tracker) -> None:
            with self._forgiving("pictures", step):
                tracker.write_pictures(step, pictures)

        self._hand_over(send)

    @override
    def write_weights(self, step: int, weights: str) -> None:
        if not self._takes_weights:
            return

        def send(tracker: Tracker) -> None:
            # Behind those that came since, they are of no use: their file is another one by now.
            if step == self._newest_weights:
                with self._forgiving("weights", step):
                    _send_weights(tracker, weights)

        self._newest_weights = step
        self._hand_over(send)

    @override
    def flush(self) -> None:
        """Nothing: the thread sends as it goes."""

    @override
    def close(self) -> None:
        self._waiting.put(None)
        patience = self._close_seconds
        self._thread.join(patience)
        if self._thread.is_alive() and self._newest_weights and self.failure is None:
            patience += self._weights_seconds
            self._thread.join(self._weights_seconds)
        if self._thread.is_alive():
            self.failure = self.failure or f"it did not end within {patience:g} s"
        if self.failure is not None:
            logger.warning("%s has not got all metrics: %s", self._name, self.failure)

    def _hand_over(self, item: Callable[[Tracker], None]) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:
            self.failure = self.failure or f"it is {_MOST_WAITING} lines behind"
        if self.failure is None:
            self._waiting.put(item)

    def _work(self) -> None:
        try:
            tracker = self._start(self._run)
            while (item := self._waiting.get()) is not None and self.failure is None:
                item(tracker)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - whatever a client raises, training goes on
            self.failure = _in_words(error)

    @contextmanager
    def _forgiving(self, what: str, step: int) -> Iterator[None]:
        """A store of artifacts that is full or away costs no numbers."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a client raises, training goes on
            logger.warning(
                "%s has not got the %s after step %d: %s", self._name, what, step, _in_words(error)
            )


def _send_weights(tracker: Tracker, uri: str) -> None:
    """From a copy, which says itself of what step it is: the file may be replaced meanwhile."""
    from terrafm.models.weights import read_contract

    with tempfile.TemporaryDirectory(prefix="terrafm-weights-") as folder:
        file = Path(folder, uri.rpartition("/")[2])
        download(uri, file)
        contract = read_contract(str(file))
        tracker.write_weights(contract.step if contract and contract.step else 0, str(file))


def _in_words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    name = type(error).__name__
    # A client may name its server as it was given, with user and password.
    return without_secrets(f"{name}: {text[0]}" if text else name)

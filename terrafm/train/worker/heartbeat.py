"""A rank's side of the control: where it is, what it is asked, and when all stop together."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from torch import distributed

from terrafm.train.worker.control import END, STARTING, STOP

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
_ANSWER_SECONDS = 30.0
_ENDED_BY_ORDER = 70


class Heartbeat:
    """A rank's side: a thread that reports where the rank is and takes orders.

    What terrafm's modules warn of in this process goes to the driver as well: nobody looks at the
    workers' own logs.

    Args:
        control: handle of the `Control` actor.
        rank: of this process.
    """

    def __init__(self, control: Any, rank: int) -> None:
        self._control = control
        self._rank = rank
        self._node = ray.get_runtime_context().get_node_id()
        self._host = socket.gethostname()
        self._where = (0, STARTING, time.time())
        self.stop_wanted = False
        self._warnings = _Warnings(logging.WARNING)
        logging.getLogger("terrafm").addHandler(self._warnings)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="terrafm-heartbeat", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """Notes what this rank begins; `step` counts finished steps."""
        self._where = (step, phase, time.time())

    def close(self) -> None:
        """Says a last time where the rank is, and ends the thread."""
        self._ended.set()
        self._thread.join()
        logging.getLogger("terrafm").removeHandler(self._warnings)

    def _beat(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(BEAT_SECONDS)
            step, phase, since = self._where
            warnings = self._warnings.waiting()
            beat = {
                "rank": self._rank,
                "node": self._node,
                "host": self._host,
                "process": os.getpid(),
                "step": step,
                "phase": phase,
                "since": since,
            }
            try:
                answer = self._control.beat.remote(beat, warnings)
                order = ray.get(answer, timeout=_ANSWER_SECONDS)
            except GetTimeoutError:
                continue
            except RayError as error:
                # The driver is gone, and Ray will end this process.
                logger.debug("no word from the driver: %s", error)
                return
            self._warnings.told(len(warnings))
            if order == END:
                os._exit(_ENDED_BY_ORDER)
            self.stop_wanted = order == STOP


class _Warnings(logging.Handler):
    """Keeps the texts of warnings until they have been told."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        self._texts.append(record.getMessage())

    def waiting(self) -> list[str]:
        """Texts that have not been told yet, oldest first."""
        return list(self._texts)

    def told(self, number: int) -> None:
        """The oldest ones have arrived."""
        del self._texts[:number]


class StopVote:
    """A vote of all ranks in each step: all must stop after the same one.

    A collective of its own, on the CPU in gloo, so that it runs beside the step.
    """

    def __init__(self) -> None:
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)
        self._group = group

    def vote(self, wanted: bool) -> Callable[[], bool]:
        """Casts this rank's vote, at once; collective.

        Returns:
            Waits for all votes and says whether any rank wanted it.
        """
        votes = torch.tensor([int(wanted)], dtype=torch.int32)
        pending = distributed.all_reduce(
            votes, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        assert pending is not None

        def outcome() -> bool:
            pending.wait()
            return bool(votes)

        return outcome

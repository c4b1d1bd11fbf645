"""What the driver and the ranks of one worker group tell each other while they train.

Ranks say twice a second where they are; the driver answers with an order: to save and stop, or
to end at once because another rank hangs. All ranks must stop after the same step, so they agree
on it in a collective of their own, which runs beside the step.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
_ANSWER_SECONDS = 30.0
_ENDED_BY_ORDER = 70

CONTINUE, STOP, END = "continue", "stop", "end"
STARTING = "starting"


@dataclass(frozen=True)
class Beat:
    """Where a rank is.

    Attributes:
        rank: of the worker group.
        node: id of its node.
        host: name of its node, for people.
        process: its id.
        step: finished steps.
        phase: what it does now.
        since: seconds since 1970 when this phase began, by its own clock.
        came: seconds since 1970 when the last word of it came.
    """

    rank: int
    node: str
    host: str
    process: int
    step: int
    phase: str
    since: float
    came: float = field(default=0.0)


class Control:
    """The ranks' last words, and the driver's order; a Ray actor on the driver's node."""

    def __init__(self) -> None:
        self._order = CONTINUE
        self._beats: dict[int, Beat] = {}

    def beat(self, beat: Mapping[str, Any]) -> str:
        """Takes a rank's word, answers with the order in force."""
        self._beats[beat["rank"]] = Beat(**(dict(beat) | {"came": time.time()}))
        return self._order

    def order(self, order: str) -> None:
        """Sets the order; one to end stays."""
        if self._order != END:
            self._order = order

    def beats(self) -> list[Beat]:
        """Of all ranks that have spoken, by rank."""
        return [self._beats[rank] for rank in sorted(self._beats)]


def start_control() -> Any:
    """A `Control` on this node, whose loss would end the driver as well."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Control).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote()


class Heart:
    """A rank's side: a thread that reports where the rank is and takes orders.

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
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="terrafm-heart", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """Notes what this rank begins; `step` counts finished steps."""
        self._where = (step, phase, time.time())

    def close(self) -> None:
        """Says a last time where the rank is, and ends the thread."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(BEAT_SECONDS)
            step, phase, since = self._where
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
                order = ray.get(self._control.beat.remote(beat), timeout=_ANSWER_SECONDS)
            except GetTimeoutError:
                continue
            except RayError as error:
                # The driver is gone, and Ray will end this process.
                logger.debug("no word from the driver: %s", error)
                return
            if order == END:
                os._exit(_ENDED_BY_ORDER)
            self.stop_wanted = order == STOP


class Agreement:
    """A vote of all ranks in each step, off the step's own collectives: on the CPU, in gloo."""

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

"""The driver's eye on a worker group: spot notices, room to grow, ranks that hang."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from terrafm.clusters.node import Node
from terrafm.ray.runtime import cluster_nodes
from terrafm.train.driver.capacity import can_grow
from terrafm.train.driver.events import EventLog
from terrafm.train.worker.control import END, STARTING, STOP, Beat

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Machines that have just come stay for so long before they are counted on.
_SETTLE_SECONDS = 5.0
# Before a group's first step: imports, the process group, the first blocks of data.
_START_PATIENCE, _LEAST_START_SECONDS = 3.0, 180.0
_SILENT_SECONDS = 10.0
# Of finished steps: enough to say how long ago the last checkpoint was.
_MOMENTS = 10_000


@dataclass(frozen=True)
class GroupLimits:
    """What a worker group may become.

    Attributes:
        per_worker: resource -> what one worker holds.
        reserved: resource -> what is kept free besides the workers, for a validation.
        max_workers: workers wanted.
        resize_interval: seconds that a group trains at least before it is stopped to grow.
        hang_timeout: seconds without any progress after which the group is ended.
    """

    per_worker: Mapping[str, float]
    reserved: Mapping[str, float]
    max_workers: int
    resize_interval: float
    hang_timeout: float


class WorkerMonitor:
    """Looks at the ranks and the cluster once a second, in a thread.

    Args:
        control: of the worker group.
        events: of the run.
        limits: of the worker group.
        workers: in the group.
        reading: CPUs that its data workers hold.
        first_step: finished steps when it starts.
        training: called once, when its first step is done.
        cancelled: once set, the ranks end at once.
        nodes: of the cluster now, with what the group may count on.
        ask: asks an autoscaler for the machines that are missing.

    Attributes:
        stopping: why the ranks were asked to save and stop, or None.
    """

    def __init__(
        self,
        control: Any,
        events: EventLog,
        limits: GroupLimits,
        *,
        workers: int,
        reading: float,
        first_step: int,
        training: Callable[[], None],
        cancelled: threading.Event,
        nodes: Callable[[], Sequence[Node]] = cluster_nodes,
        ask: Callable[[], None] = lambda: None,
    ) -> None:
        self.stopping: str | None = None
        self._control = control
        self._events = events
        self._limits = limits
        self._workers = workers
        self._reading = reading
        self._first_step = first_step
        self._training = training
        self._cancelled = cancelled
        self._nodes = nodes
        self._ask = ask
        self._began = time.monotonic()
        self._beats: list[Beat] = []
        self._progress: deque[tuple[float, int]] = deque(maxlen=_MOMENTS)
        self._moved = (time.monotonic(), "")
        self._room_since: float | None = None
        self._told = self._hung = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="terrafm-watch", daemon=True)

    def __enter__(self) -> WorkerMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        with suppress(RayError):
            self._hear()

    @property
    def step(self) -> int:
        """Finished steps, as far as the ranks have said."""
        return max([self._first_step, *(beat.step for beat in self._beats)])

    def seconds_silent(self) -> float:
        """Since the last word of the rank that has been silent for longest."""
        return time.time() - min([time.time(), *(beat.came for beat in self._beats)])

    def seconds_since(self, step: int) -> float:
        """Since `step` steps were finished; 0 where this group never trained."""
        moments = [moment for moment, reached in self._progress if reached >= step]
        return time.time() - moments[0] if moments else 0.0

    def _follow(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            try:
                if self._cancelled.is_set():
                    self._control.order.remote(END)
                self._hear()
                self._ask()
                self._look(self._nodes())
            except RayError as error:
                # It comes back, or the worker group fails for the same reason.
                logger.debug("cannot look at the cluster: %s", error)

    def _hear(self) -> None:
        """What the ranks have said."""
        asked = [self._control.beats.remote(), self._control.take_warnings.remote()]
        self._beats, warnings = ray.get(asked, timeout=10)
        for rank, text in warnings:
            self._events.add("warning", f"rank {rank}: {text}", rank=rank, warning=text)

    def _look(self, nodes: Sequence[Node]) -> None:
        self._note_progress()
        going = [node for node in nodes if node.going_at is not None and self._has_ranks(node)]
        if going:
            self._stop(_going(going[0]))
        elif self._may_grow(nodes):
            self._stop("there is room for more workers")
        self._look_for_hang()

    def _note_progress(self) -> None:
        training = any(beat.phase != STARTING for beat in self._beats)
        if training and (not self._progress or self.step > self._progress[-1][1]):
            self._progress.append((time.time(), self.step))
        if not self._told and self.step > self._first_step:
            self._told = True
            self._training()

    def _has_ranks(self, node: Node) -> bool:
        return any(beat.node == node.id for beat in self._beats)

    def _may_grow(self, nodes: Sequence[Node]) -> bool:
        """Room on machines without ranks, for some time, long enough after the last start."""
        limits = self._limits
        occupied = {beat.node for beat in self._beats}
        if not (
            self._workers < limits.max_workers
            and len(self._beats) == self._workers
            and can_grow(nodes, occupied, limits.per_worker, self._reading, limits.reserved)
        ):
            self._room_since = None
            return False
        now = time.monotonic()
        self._room_since = self._room_since or now
        settled = now - self._room_since >= _SETTLE_SECONDS
        return settled and now - self._began >= limits.resize_interval

    def _stop(self, reason: str) -> None:
        if self.stopping is None:
            self.stopping = reason
            self._control.order.remote(STOP)
            self._events.add(
                "stopping", f"{reason}: the workers save and stop", reason=reason, step=self.step
            )

    def _look_for_hang(self) -> None:
        where = repr([(beat.rank, beat.step, beat.phase) for beat in self._beats])
        now = time.monotonic()
        if where != self._moved[1]:
            self._moved = (now, where)
        patience = patience_for(self._limits.hang_timeout, self.step > self._first_step)
        if not self._hung and now - self._moved[0] > patience:
            self._hung = True
            reason = find_hung_rank(self._beats, self._workers, time.time())
            self._control.order.remote(END)
            text = f"no progress for {patience:g} s: {reason}; the workers are started again"
            self._events.add("hung", text, reason=reason, step=self.step)


def _going(node: Node) -> str:
    when = ""
    if node.going_at:
        when = f" in {max(0.0, node.going_at - time.time()):.0f} s"
    return f"{node.name} will be taken away{when}"


def patience_for(hang_timeout: float, training: bool) -> float:
    """Seconds without progress after which a group hangs.

    Before its first step imports count, whose length is the machine's and not the model's: who
    wants hangs found quickly must not have a slow machine's starts ended again and again.

    Args:
        hang_timeout: as configured.
        training: whether the group has finished a step.
    """
    return hang_timeout if training else max(_START_PATIENCE * hang_timeout, _LEAST_START_SECONDS)


def find_hung_rank(beats: Sequence[Beat], workers: int, now: float) -> str:
    """Which rank the others wait for, as far as their words tell.

    A rank that waits inside a collective is in the same phase as its peers; the one they wait for
    is silent, a step behind, or does something else.

    Args:
        beats: the last word of each rank.
        workers: ranks there should be.
        now: seconds since 1970.
    """
    known = {beat.rank for beat in beats}
    if absent := [rank for rank in range(workers) if rank not in known]:
        return f"rank {absent[0]} never started"
    silent = [beat for beat in beats if now - beat.came > _SILENT_SECONDS]
    if silent:
        beat = min(silent, key=lambda beat: beat.came)
        return f"{_person(beat)} has been silent for {now - beat.came:.0f} s"
    first = min(beats, key=lambda beat: beat.step)
    if any(beat.step > first.step for beat in beats):
        return f"{_person(first)} is still at step {first.step}: {first.phase}"
    phases = [beat.phase for beat in beats]
    odd = [beat for beat in beats if phases.count(beat.phase) < len(beats) / 2]
    if len(beats) == 1 or odd:
        beat = (odd or list(beats))[0]
        return f"{_person(beat)} has been {beat.phase} for {now - beat.since:.0f} s"
    if len(set(phases)) > 1:
        return "; ".join(f"{_person(beat)} is {beat.phase}" for beat in beats)
    return f"all {len(beats)} ranks are {phases[0]} at step {first.step}"


def _person(beat: Beat) -> str:
    return f"rank {beat.rank} (process {beat.process} on {beat.host})"

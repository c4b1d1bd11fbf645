"""Validates checkpoints while the run trains: a Ray task of the driver, beside the worker groups.

Ray Train has an asynchronous validation of its own (`ray.train.report(..., validation=...)`). It
belongs to the controller of one worker group, and a run here is many of them, one after the
other. Ray 2.60 validates every reported checkpoint in order, and before a group ends, be it done,
asked to stop for a spot notice or failed, its controller waits for all of them: a new group would
start that much later. It knows of checkpoints when they are reported, ours are complete some time
after that; and where its controller dies, so do its validations. The driver outlives all groups,
and sees what is complete.

So the driver looks for the newest complete checkpoint that is due, and has a task score it. No
rank takes part. The task holds a placement group of its own as long as it runs: from that each
look at the cluster can tell whether its CPUs are in what is free.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from terrafm.clusters.node import Node
from terrafm.config import ValidationConfig
from terrafm.errors import TerraFMError
from terrafm.storage import is_local, join, read_bytes
from terrafm.storage.faults import one_line
from terrafm.train.checkpoints.exported import BEST, export_best
from terrafm.train.checkpoints.files import MARKER
from terrafm.train.checkpoints.validations import Validation, ValidationLog
from terrafm.train.driver.capacity import fitting_workers
from terrafm.train.driver.events import EventLog
from terrafm.train.metrics.tracker_clients import open_trackers
from terrafm.train.metrics.trackers import TrackedPicture, TrackedRun, Tracker
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_REMOTE_LOOK_SECONDS = 10.0
_REPEAT_SECONDS = 60.0
# Of a process that dies in the middle, by memory or with its machine.
_MOST_ATTEMPTS = 3
# Looks in a row that disk or store did not allow, after the last step.
_MOST_FAULTS = 30
_LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class _Running:
    """A validation under way."""

    step: int
    key: str
    group: PlacementGroup
    result: Any
    since: float


@dataclass(frozen=True)
class _Scored:
    """What came of a validation.

    Attributes:
        score: the line of validation.jsonl.
        pictures: for the trackers.
        missing: why there are no pictures, where they were asked for.
    """

    score: dict[str, Any]
    pictures: Sequence[TrackedPicture] = ()
    missing: str = ""


class Validator:
    """Scores due checkpoints, one at a time, in a thread of the driver.

    As a context it ends with the run: after the last step it waits for what is due, after a
    failure it ends what is under way, which a repeated command does again.

    Args:
        validation: what scores.
        log: of the run's validations.
        events: of the run.
        run: for the trackers.
        config: the run's `validation`.
        trackers: names of `train.trackers`.
        cancelled: once set, nothing is waited for.
    """

    def __init__(
        self,
        validation: Validation,
        log: ValidationLog,
        events: EventLog,
        run: TrackedRun,
        config: ValidationConfig,
        *,
        trackers: Sequence[str],
        cancelled: threading.Event,
    ) -> None:
        self._validation = validation
        self._log = log
        self._events = events
        self._run = run
        self._config = config
        self._tracker_names = trackers
        self._cancelled = cancelled
        self.need = {"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus else {})
        self._trackers: dict[str, Tracker] = {}
        self._running: _Running | None = None
        self._finished: tuple[int, _Scored] | None = None
        self._attempts: Counter[str] = Counter()
        self._told_at = 0.0
        self._faults = 0
        self._exported: int | None = None
        self._export_after = 0.0
        self._held_back = True
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._pause = _LOOK_SECONDS if is_local(run.folder) else _REMOTE_LOOK_SECONDS
        self._thread = threading.Thread(target=self._follow, name="terrafm-validate", daemon=True)

    def __enter__(self) -> Validator:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        try:
            if error is None:
                self._finish()
        finally:
            self._stop()
            for tracker in self._trackers.values():
                tracker.close()

    def reserved(self, nodes: Sequence[Node]) -> Mapping[str, float]:
        """What a validation still needs of what is free on these nodes; nothing while one runs."""
        running = self._running
        if running is not None and any(_holds(node, running.group) for node in nodes):
            return {}
        return self.need

    def freed(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes as they would be without the validation that runs."""
        running = self._running
        if running is None:
            return list(nodes)
        return [self._without(node) if _holds(node, running.group) else node for node in nodes]

    def hold_back(self) -> None:
        """Starts nothing before `go_on`: what is free is for the workers that start now."""
        self._held_back = True

    def go_on(self) -> None:
        """The workers have their places."""
        self._held_back = False

    def make_way(self, nodes: Sequence[Node], need: Mapping[str, float], most: int) -> bool:
        """Ends a validation where more workers would fit without it; it is done again later.

        Args:
            nodes: of the cluster.
            need: of one worker.
            most: workers wanted.

        Returns:
            Whether it did.
        """
        if self._running is None or not nodes:
            return False
        fitting = fitting_workers(nodes, need, most, self.reserved(nodes))
        without = fitting_workers(self.freed(nodes), need, most, self.need)
        if without <= fitting:
            return False
        with self._lock:
            self._stop()
        return True

    def going_on_from(self, step: int) -> None:
        """A worker group will go on from this step: what lies past it is done anew.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take what is left.
        """
        with self._lock:
            if self._running is not None and self._running.step > step:
                self._stop()
            if self._finished is not None and self._finished[0] > step:
                self._finished = None
            self._log.go_back(step)

    @contextmanager
    def renewal(self) -> Iterator[None]:
        """While it lasts, this process has no Ray; what was under way is done again."""
        with self._lock:
            self._stop()
            yield

    def _follow(self) -> None:
        while not self._end.wait(self._pause):
            self._look()
            self._export()

    def _finish(self) -> None:
        """Until nothing is due any more."""
        told = False
        self._faults = 0
        self.go_on()
        while not self._cancelled.is_set():
            self._look()
            idle = self._running is None and self._finished is None
            if idle and not self._faults:
                self._export()
                return
            if self._faults > _MOST_FAULTS:
                raise TerraFMError(
                    f"the validations of {self._run.folder} could not be written: its disk or "
                    "store does not take them; give the same command again"
                )
            if not told and self._running is not None:
                told = True
                step = self._running.step
                logger.warning("training is done; the validation after step %d is not yet", step)
            time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        """Takes in what has ended, and starts what is due."""
        try:
            with self._lock:
                self._collect()
                self._write()
                due = self._next()
                held = [due[0]] if due is not None else []
                if self._running is not None:
                    held.append(self._running.step)
                self._log.hold(held)
                if due is not None and self._running is None and not self._held_back:
                    self._start(*due)
                self._tell_of_waiting()
            self._faults = 0
        except (RayError, TerraFMError, OSError) as error:
            # The next look tries again.
            self._faults += 1
            logger.debug("no look at the validations: %s", error)

    def _export(self) -> None:
        """The weights of the best checkpoint, outside the lock: a store may take a while."""
        now = time.monotonic()
        if self._log.best_step == self._exported or now < self._export_after:
            return
        try:
            step = self._exported = export_best(self._run.folder)
            if step is not None:
                for tracker in self._trackers.values():
                    tracker.write_weights(step, RunFolder(self._run.folder).exported(BEST))
        except (TerraFMError, OSError) as error:
            # A checkpoint that has just gone, a store that does not answer, a full disk.
            self._export_after = now + _REPEAT_SECONDS
            logger.debug("the weights of the best checkpoint are not written yet: %s", error)

    def _next(self) -> tuple[int, str, str] | None:
        """Step, URI and content of the checkpoint that comes next; None where none is due."""
        due = self._log.due()
        if due is None or (self._running is not None and due[0] == self._running.step):
            return None
        try:
            # A checkpoint that is written anew is another one.
            content = read_bytes(join(due[1], MARKER))
        except FileNotFoundError:
            return None
        key = f"{due[0]} {hashlib.sha256(content).hexdigest()}"
        return None if self._attempts[key] >= _MOST_ATTEMPTS else (*due, key)

    def _start(self, step: int, uri: str, key: str) -> None:
        group = placement_group([self.need], name=f"terrafm-validation-{step}")
        task = _task.options(
            num_cpus=self._config.cpus,
            num_gpus=self._config.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, int(self._config.cpus)))}},
        )
        # Of a process that died, perhaps for lack of memory, the score is wanted first of all.
        pictures = bool(self._tracker_names) and not self._attempts[key]
        result = task.remote(self._validation, uri, pictures)
        self._running = _Running(step, key, group, result, time.monotonic())

    def _collect(self) -> None:
        running = self._running
        if running is None or not ray.wait([running.result], timeout=0)[0]:
            return
        try:
            self._finished = (running.step, ray.get(running.result))
        except RayError as error:
            self._attempts[running.key] += 1
            self._note_failure(running, error)
        self._release()

    def _note_failure(self, running: _Running, error: RayError) -> None:
        reason = "its process died"
        if isinstance(error, RayTaskError):
            # It would only fail again.
            self._attempts[running.key] = _MOST_ATTEMPTS
            reason = one_line(error.cause)
        last = self._attempts[running.key] >= _MOST_ATTEMPTS
        text = f"no validation after step {running.step}: {reason}; training goes on"
        self._events.add(
            "not_validated", text if last else None, step=running.step, reason=reason, last=last
        )

    def _write(self) -> None:
        """What has ended; kept for the next look where disk or store do not take it."""
        if self._finished is None:
            return
        step, scored = self._finished
        line = self._log.add(step, scored.score)
        self._finished = None
        value, best = line["metrics"].get(self._config.metric), self._log.best
        self._events.add(
            "validated",
            step=step,
            metric=self._config.metric,
            value=value,
            best=best is not None and best.step == step,
        )
        if scored.missing:
            logger.warning("the trackers get no pictures after step %d: %s", step, scored.missing)
        self._track(step, line["metrics"], scored.pictures)

    def _track(
        self,
        step: int,
        metrics: Mapping[str, float | None],
        pictures: Sequence[TrackedPicture],
    ) -> None:
        if not self._trackers:
            # Not before: the ranks' own trackers have made their runs by now.
            self._trackers = open_trackers(self._tracker_names, self._run)
        numbers = {f"validation/{n}": v for n, v in metrics.items() if v is not None}
        for tracker in self._trackers.values():
            tracker.write(step, numbers)
            if pictures:
                tracker.write_pictures(step, pictures)
            tracker.flush()

    def _tell_of_waiting(self) -> None:
        """Once a minute, as long as no machine has room for the validation."""
        running, now = self._running, time.monotonic()
        if running is None or now - max(running.since, self._told_at) < _REPEAT_SECONDS:
            return
        if placement_group_table(running.group)["state"] != "CREATED":
            self._told_at = now
            needs = " and ".join(f"{amount:g} {name}" for name, amount in self.need.items())
            reason = f"no machine has {needs} left for the validation after step {running.step}"
            self._events.add("waiting", f"{reason}; training goes on", reason=reason)

    def _without(self, node: Node) -> Node:
        available = dict(node.available)
        for name, amount in self.need.items():
            available[name] = available.get(name, 0.0) + amount
        return replace(node, available=available)

    def _stop(self) -> None:
        """Ends what is under way."""
        if self._running is None or not ray.is_initialized():
            self._running = None
            return
        with suppress(RayError):
            ray.cancel(self._running.result, force=True)
        self._release()

    def _release(self) -> None:
        if self._running is not None:
            group, self._running = self._running.group, None
            remove_placement_group(group)


def _holds(node: Node, group: PlacementGroup) -> bool:
    """Whether a node has this group's resources apart from what is free."""
    return any(name.endswith(group.id.hex()) for name in node.available)


def _score(validation: Validation, checkpoint: str, pictures: bool) -> _Scored:
    """In a process of its own, which ends with it and gives way to those that train."""
    os.nice(_LOWEST_PRIORITY)
    began = time.perf_counter()
    score = validation.score(checkpoint)
    score = {"seconds": round(time.perf_counter() - began, 2), **score}
    if not pictures:
        return _Scored(score)
    try:
        return _Scored(score, validation.pictures(checkpoint))
    except Exception as error:  # noqa: BLE001 - no picture is worth a score
        return _Scored(score, missing=one_line(error))


_task = ray.remote(max_calls=1, max_retries=0)(_score)

"""Keeps a run going: starts worker groups on the machines there are, one after the other.

A group ends because the run is done, because it was asked to save and stop (a machine will be
taken away, or there is room to grow), or because something failed. Each time the next one goes on
from the newest whole checkpoint, with as many workers as fit. Ray Train could restart groups by
itself; it does so without a checkpoint before it grows, calls some failures final, and waits for
machines that it counts on in vain.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from terrafm.clusters.node import Node
from terrafm.config import Config, TrainConfig
from terrafm.errors import RayStartError, TerraFMError, UsageError
from terrafm.ray.runtime import (
    autoscaler,
    cluster_nodes,
    free_orphans,
    is_autoscaled,
    keep_data_actors_here,
    renew_ray,
)
from terrafm.ray.standby import helper_environment, rank_environment
from terrafm.storage import arrow_filesystem, is_local, join
from terrafm.train.checkpoints.intact import newest_intact
from terrafm.train.checkpoints.staging import remove_staging
from terrafm.train.checkpoints.store import read_record
from terrafm.train.driver.autoscaling import MachineDemand
from terrafm.train.driver.capacity import fitting_workers, reading_cpus
from terrafm.train.driver.events import EventLog, read_events
from terrafm.train.driver.hardware import group_facts
from terrafm.train.driver.monitor import GroupLimits, WorkerMonitor
from terrafm.train.driver.validator import Validator
from terrafm.train.metrics.operators import DriverMetrics
from terrafm.train.run_folder import RunFolder, read_failure
from terrafm.train.worker.control import start_control
from terrafm.train.worker.loop import task_arguments, train_worker
from terrafm.train.worker.setup import TrainingSetup

logger = logging.getLogger(__name__)

# What the last group held comes back within seconds of its end.
_SETTLE_SECONDS = 2.0
_LOOK_SECONDS = 0.25
_REPEAT_SECONDS = 60.0
_LONGEST_PAUSE = 30.0
_ROUNDING = 1e-6
_RAY_SETTINGS = {
    # Between two looks at the workers, 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Resources were seen to be free: whoever took them meanwhile is not waited for.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25",
    # Spot notices are the supervisor's.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


# A busy machine is slow to start them, or the node was lost meanwhile.
_UNSTARTED = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


class RunCancelledError(TerraFMError):
    """Another thread has ended the run."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a worker group begins: no `uri` at step 0 of a fresh run."""

    uri: str | None
    step: int


@dataclass(frozen=True)
class _Ending:
    """How a worker group ended; the monitor knows the rest.

    Attributes:
        failure: why it failed, or None.
        seconds_silent: since its last word.
        monitor: of the group.
        unstarted: its processes did not come in time, or at all.
    """

    failure: str | None
    seconds_silent: float
    monitor: WorkerMonitor
    unstarted: bool = False


class Supervisor:
    """One run's worker groups, from the driver.

    Args:
        setup: configuration and dataset.
        output: URI of the run's folder.
        cancelled: once another thread sets it, `run` ends within seconds.
        validator: of its checkpoints, if there is one; it lives on what the workers leave.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        output: str,
        cancelled: threading.Event | None = None,
        validator: Validator | None = None,
    ) -> None:
        self._cancelled = cancelled or threading.Event()
        self._validator = validator
        self._setup = setup
        self._output = output
        self._train = setup.config.train
        self._events = EventLog(output)
        self._gpu = uses_gpu(self._train)
        need = {"CPU": float(self._train.cpus_per_worker)} | ({"GPU": 1.0} if self._gpu else {})
        self._limits = GroupLimits(
            need,
            {} if validator is None else validator.need,
            self._train.most_workers,
            self._train.resize_interval,
            self._train.hang_timeout,
        )
        self._coordinator = TrainAutoscalingCoordinatorClient(f"terrafm-{uuid.uuid4().hex[:8]}")
        self._demand = MachineDemand(self._request, autoscaler)
        self._interrupted_at: float | None = None
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)

    def run(self) -> None:
        """Trains to the last step.

        Raises:
            RunCancelledError: it was cancelled; what is saved is saved.
            RayStartError: no group's processes started; nothing else was wrong.
            TerraFMError: the run cannot go on, or failed too often without getting on.
        """
        total = self._setup.total_steps
        self._exported = DriverMetrics(self._output, read_events(self._output))
        failures = unstarted = 0
        with ExitStack() as cleanup:
            scratch = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="terrafm-"))
            cleanup.callback(self._coordinator.cancel_resource_request)
            cleanup.callback(self._exported.close)
            resume = self._choose_checkpoint()
            keep_data_actors_here()
            while True:
                before = resume.step
                ending = self._train_group(resume, scratch)
                self._check_cancelled()
                if (failure := read_failure(self._output)) is not None:
                    raise failure
                resume = self._choose_checkpoint()
                if resume.step >= total:
                    self._events.add("finished", step=resume.step)
                    return
                if resume.step > before:
                    failures = unstarted = 0
                self._interrupted_at = time.time() - ending.seconds_silent
                if ending.failure is None:
                    self._events.add("stopped", step=resume.step, reason=ending.monitor.stopping)
                    self._exported.tell("stopped")
                    continue
                failures += 1
                unstarted += ending.unstarted
                self._tell_of_failure(ending, resume.step)
                if failures > self._train.max_failures:
                    kind = RayStartError if unstarted == failures else TerraFMError
                    raise kind(
                        f"training failed {failures} times without reaching another checkpoint; "
                        f"the last time: {ending.failure}"
                    )
                time.sleep(min(_LONGEST_PAUSE, 2.0 ** (failures - 1) - 1))

    def check_possible(self) -> None:
        """Looks whether the cluster has, or can get, what the fewest workers hold.

        Raises:
            UsageError: it never will.
        """
        fewest, cpus = self._train.fewest_workers, self._train.cpus_per_worker
        has = ray.cluster_resources()
        reserved = {} if self._validator is None else self._validator.need
        taken = fewest * cpus + reserved.get("CPU", 0.0)
        if not is_autoscaled() and has.get("CPU", 0.0) <= taken:
            validation = f" and validation.cpus={reserved['CPU']:g}" if reserved else ""
            raise UsageError(
                f"the Ray cluster has {has.get('CPU', 0.0):g} CPUs, and train.workers={fewest} "
                f"with train.cpus_per_worker={cpus:g}{validation} leave none to read data: "
                f"lower one of {'them' if reserved else 'the two'}, or add CPUs"
            )
        gpus = fewest * self._limits.per_worker.get("GPU", 0.0)
        if gpus and not is_autoscaled() and not has.get("GPU", 0.0):
            raise UsageError(
                "train.gpu=yes, and no machine of the Ray cluster has a GPU: set train.gpu=auto to "
                "train on CPUs, or name a cluster that has one in RAY_ADDRESS"
            )
        if (
            "GPU" in reserved
            and not is_autoscaled()
            and has.get("GPU", 0.0) < gpus + reserved["GPU"] - _ROUNDING
        ):
            raise UsageError(
                f"the Ray cluster has {has.get('GPU', 0.0):g} GPUs, of which training holds "
                f"{gpus:g}: too few are left for validation.gpus={reserved['GPU']:g}"
            )

    def _choose_checkpoint(self) -> Checkpoint:
        """The newest whole one; what a killed writer left behind is cleared."""
        remove_staging(self._output)
        uri, complaints = newest_intact(RunFolder(self._output).checkpoints)
        for complaint in complaints:
            self._events.add("damaged", f"{complaint}; going on from {uri}")
        step = 0 if uri is None else int(read_record(uri)["step"])
        if self._validator is not None:
            self._validator.going_on_from(step)
        return Checkpoint(uri, step)

    def _train_group(self, resume: Checkpoint, scratch: str) -> _Ending:
        workers, fair_cpus = self._await_machines()
        data_cpus = self._setup.config.data.cpus_per_worker or fair_cpus
        cpus = workers * (self._limits.per_worker["CPU"] + data_cpus)
        facts = group_facts(ray.cluster_resources(), workers, cpus, int(self._gpu))
        self._events.add("started", workers=workers, step=resume.step, **facts)
        hook = helper_environment() if self._train.standby else nullcontext[dict[str, str]]({})
        failure, renew, unstarted = None, False, False
        with (
            hook as variables,
            WorkerMonitor(
                control := start_control(variables),
                self._events,
                self._limits,
                workers=workers,
                reading=workers * min(data_cpus, fair_cpus),
                first_step=resume.step,
                training=lambda: self._tell_of_training(workers),
                cancelled=self._cancelled,
                nodes=self._nodes_without_validation,
                ask=lambda: self._demand.ask(self._train.most_workers - workers),
            ) as monitor,
        ):
            try:
                self._trainer(workers, data_cpus, resume, control, scratch).fit()
            except (TrainingFailedError, ActorDiedError) as error:
                failure = _one_line(error)
                unstarted = isinstance(_cause(error), _UNSTARTED)
                renew = isinstance(error, (ControllerError, ActorDiedError))
            silent = monitor.seconds_silent() if failure else 0.0
        if renew:
            # A local Ray may not get back what the failed group held. Not before the hook is out
            # of this process's environment, which a new Ray would inherit.
            with nullcontext() if self._validator is None else self._validator.renewal():
                renew_ray(logical_cpus(self._setup.config))
            keep_data_actors_here()
        return _Ending(failure, silent, monitor, unstarted)

    def _await_machines(self) -> tuple[int, float]:
        """Workers to start now, and the CPUs each may read with; waits for the fewest.

        More than the fewest are waited for only until what is free does not change any more.
        """
        fewest, most = self._train.fewest_workers, self._train.most_workers
        told = -math.inf
        fitting, since = -1, time.monotonic()
        if self._validator is not None:
            self._validator.hold_back()
        while True:
            self._check_cancelled()
            # What failed groups have left would be counted as taken.
            free_orphans()
            nodes = cluster_nodes()
            now = time.monotonic()
            reserved = self._reserved(nodes)
            found = fitting_workers(nodes, self._limits.per_worker, most, reserved)
            if found != fitting:
                fitting, since = found, now
            enough = fitting == most or now - since >= _SETTLE_SECONDS
            if fitting >= fewest and enough:
                return fitting, reading_cpus(nodes, self._limits.per_worker, fitting, reserved)
            if enough and now - told >= _REPEAT_SECONDS:
                told = now
                reason = f"{fitting} of at least {fewest} workers fit on the cluster"
                self._events.add("waiting", f"waiting for machines: {reason}", reason=reason)
            self._demand.ask(most, fewest)
            time.sleep(_LOOK_SECONDS)

    def _reserved(self, nodes: list[Node]) -> Mapping[str, float]:
        """What the workers leave for a validation; one that is in their way ends."""
        if self._validator is None:
            return {}
        self._validator.make_way(nodes, self._limits.per_worker, self._train.most_workers)
        return self._validator.reserved(nodes)

    def _nodes_without_validation(self) -> list[Node]:
        nodes = cluster_nodes()
        return nodes if self._validator is None else self._validator.freed(nodes)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise RunCancelledError(f"the run in {self._output} was cancelled")

    def _request(self, workers: int) -> None:
        """Tells an autoscaler; the request lapses by itself when this process dies.

        Ray Train asks for the workers that a group has; these come on top.
        """
        if workers:
            self._coordinator.send_resource_request(self._scaling(workers), workers)
        else:
            self._coordinator.cancel_resource_request()

    def _scaling(self, workers: int) -> ScalingConfig:
        return ScalingConfig(
            num_workers=workers,
            use_gpu=self._gpu,
            resources_per_worker={"CPU": self._train.cpus_per_worker, "GPU": int(self._gpu)},
        )

    def _trainer(
        self,
        workers: int,
        data_cpus: float,
        resume: Checkpoint,
        control: Any,
        scratch: str,
    ) -> TorchTrainer:
        # Ray's own bookkeeping; our checkpoints are the only state a run resumes from.
        filesystem, storage = arrow_filesystem(
            scratch if is_local(self._output) else join(self._output, "ray")
        )
        return TorchTrainer(
            train_worker,
            train_loop_config={
                "task": task_arguments(self._setup, self._output, data_cpus, resume.uri),
                "control": control,
            },
            torch_config=TorchConfig(backend="nccl" if self._gpu else "gloo"),
            scaling_config=self._scaling(workers),
            run_config=RunConfig(
                name=f"pretrain-{uuid.uuid4().hex[:8]}",
                storage_path=storage,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": rank_environment(self._gpu)},
            ),
        )

    def _tell_of_failure(self, ending: _Ending, newest: int) -> None:
        step = ending.monitor.step
        lost = step - newest
        seconds = round(ending.monitor.seconds_since(newest), 1) if lost else 0.0
        self._events.add(
            "lost",
            f"after step {step}: {ending.failure}",
            reason=ending.failure,
            step=step,
            seconds=round(ending.seconds_silent, 2),
        )
        self._exported.tell("lost")
        self._events.add(
            "resumed",
            f"going on from step {newest}: {lost} steps, {seconds:g} s of work, were lost and are "
            "repeated",
            step=newest,
            steps=lost,
            seconds=seconds,
        )

    def _tell_of_training(self, workers: int) -> None:
        if self._validator is not None:
            self._validator.go_on()
        if self._interrupted_at is None:
            self._events.add("training", workers=workers)
            return
        seconds = round(time.time() - self._interrupted_at, 1)
        text = f"training again with {workers} of {self._train.most_workers} workers, {seconds:g} s"
        self._events.add("training", f"{text} after it stopped", workers=workers, seconds=seconds)
        self._interrupted_at = None


def logical_cpus(config: Config) -> int:
    """Of a local Ray: one more per worker than the workers hold, or reading would wait for ever.

    Those of a validation come on top.
    """
    train, validation = config.train, config.validation
    reserved = validation.cpus if validation.every_steps else 0.0
    training = train.most_workers * (train.cpus_per_worker + 1)
    return max(os.cpu_count() or 1, math.ceil(training + reserved))


def uses_gpu(train: TrainConfig) -> bool:
    """Whether each worker holds a GPU."""
    if train.gpu != "auto":
        return train.gpu == "yes"
    enough = ray.cluster_resources().get("GPU", 0) >= train.fewest_workers
    return bool(enough and torch.cuda.is_available())


def _one_line(error: Exception) -> str:
    """The cause in one sentence: of several, a dead process comes before those who lost it."""
    if isinstance(error, ActorDiedError):
        return "the process of Ray Train's controller died"
    causes = getattr(error, "worker_failures", None)
    if not causes:
        return _sentence(error)
    rank, cause = min(causes.items(), key=lambda item: (not _died(item[1]), item[0]))
    return (
        f"the process of rank {rank} died" if _died(cause) else f"rank {rank}: {_sentence(cause)}"
    )


def _died(error: Exception) -> bool:
    return isinstance(_cause(error), ActorDiedError)


def _sentence(error: Exception) -> str:
    text = str(_cause(error)).strip().splitlines()
    return text[-1].partition(". ")[0] if text else type(error).__name__


def _cause(error: Exception) -> Exception:
    """What Ray Train has wrapped: what the loop raised, or why a worker does not answer."""
    for name in ("controller_failure", "_base_exc", "health_check_failure"):
        error = getattr(error, name, error)
    return error

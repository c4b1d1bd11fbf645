"""Checks a run, trains, and says how it ended."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from terrafm.config import Config
from terrafm.errors import TerraFMError
from terrafm.shell import command_line
from terrafm.storage import absolute, is_local, join, remove, to_json, write_bytes
from terrafm.storage.addresses import without_secrets
from terrafm.storage.faults import one_line
from terrafm.storage.lease import lease
from terrafm.terminal import InNotebooks
from terrafm.train.checkpoints.best import Best, read_best
from terrafm.train.checkpoints.exported import bring_up_to_date, exported_weights
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.checkpoints.validations import Validate
from terrafm.train.driver.checks import CheckedRun, check_run
from terrafm.train.driver.events import EventLog
from terrafm.train.metrics.alerts import Alerts
from terrafm.train.metrics.log import read_metrics
from terrafm.train.metrics.trackers import TrackedRun
from terrafm.train.run_folder import RunFolder
from terrafm.train.worker.setup import TrainingSetup

if TYPE_CHECKING:
    from terrafm.train.driver.supervisor import Supervisor
    from terrafm.train.driver.validator import Validator

logger = logging.getLogger(__name__)

_NOT_NEEDED = "the run goes on from its checkpoint, which has every tensor"
_SCHEDULED = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "teacher_momentum": "teacher momentum",
}
_POLL_SECONDS = 0.5
_REMOTE_POLL_SECONDS = 15.0

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called with finished steps, all steps, and the newest line of metrics.jsonl."""


@dataclass(frozen=True)
class RunResult(InNotebooks):
    """A finished run.

    Attributes:
        output: URI of the run's folder.
        checkpoint: URI of the checkpoint at the last step.
        steps: finished steps.
        resumed_from: step this call went on from; equal to `steps` where all was done before.
        metrics: newest line of metrics.jsonl.
        best: the best checkpoint by validation; None where nothing was validated.
        exported: URIs of its weights, those of the last checkpoint first.
    """

    output: str
    checkpoint: str
    steps: int
    resumed_from: int
    metrics: dict[str, Any]
    best: Best | None = None
    exported: tuple[str, ...] = ()

    def render(self) -> str:
        """How the run ended, and where its checkpoints and weights are."""
        return describe(self)


def pretrain(
    config: Config,
    data: str,
    output: str,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
    validate: Validate | None = None,
    extend: bool = False,
) -> RunResult:
    """Pretrains, or goes on with the run that lies in `output`.

    Args:
        config: the whole tree.
        data: URI of a dataset made by ingest.
        output: URI of the run's folder; object storage or a disk that all nodes share.
        progress: told about finished steps while the run goes.
        cancelled: once another thread sets it, the run ends within seconds.
        validate: scores checkpoints while the run trains, where `validation.every_steps` asks for
            it: `terrafm.eval.validation.CheckpointValidation`.
        extend: go on with a run of another number of steps, on the schedules of this one.

    Raises:
        UsageError: configuration, dataset, labelled set and run folder do not fit together, or
            another process trains there; nothing was written.
        RunCancelledError: it was cancelled.
        TerraFMError: the run failed.
    """
    # Workers run in folders of their own.
    config, data, output = _with_absolute_weights(config), absolute(data), absolute(output)
    cancelled = cancelled or threading.Event()
    with lease(output, "terrafm pretrain", on_loss=cancelled.set):
        return _pretrain(config, data, output, progress, cancelled, validate, extend)


def _pretrain(
    config: Config,
    data: str,
    output: str,
    progress: Progress | None,
    cancelled: threading.Event,
    validate: Validate | None,
    extend: bool,
) -> RunResult:
    checked = check_run(config, data, output, validate, extend)
    setup, resumed_from = checked.setup, checked.resumed_from
    total = setup.total_steps
    # What a command that was killed did not come to write.
    bring_up_to_date(output, resumed_from)
    if checked.finished:
        return _result(output, total, resumed_from)
    supervisor, validator = _start_ray(checked, output, cancelled)
    trained = resumed_from >= total
    if not trained:
        supervisor.check_possible()
    remove(RunFolder(output).failure)
    _write_config(setup, output, checked.extended_from is not None)
    for difference in checked.told:
        logger.warning("%s: %s", _NOT_NEEDED, difference)
    if checked.extended_from is not None:
        _tell_of_extension(setup, output, resumed_from, checked.extended_from)
    with (
        _ProgressMonitor(output, total, progress),
        nullcontext() if validator is None else validator,
    ):
        if not trained:
            supervisor.run()
    if checked.validation is not None:
        _prune(setup, output)
    bring_up_to_date(output, total)
    return _result(output, total, resumed_from)


def _start_ray(
    checked: CheckedRun, output: str, cancelled: threading.Event
) -> tuple[Supervisor, Validator | None]:
    """Ray, and what trains and validates with it."""
    # They load Ray, which takes seconds: not before all that needs none has been checked.
    from terrafm.ray.runtime import ensure_ray
    from terrafm.train.driver.supervisor import Supervisor, logical_cpus
    from terrafm.train.driver.validator import Validator

    setup, config, validator = checked.setup, checked.setup.config, None
    ensure_ray(logical_cpus(config))
    if checked.validation is not None and checked.log is not None:
        values = config.model_dump(mode="json")
        validator = Validator(
            checked.validation,
            checked.log,
            EventLog(output),
            TrackedRun(output, checked.resumed_from, values, "validation"),
            config.validation,
            trackers=config.train.trackers,
            cancelled=cancelled,
        )
    return Supervisor(setup, output, cancelled, validator), validator


def _prune(setup: TrainingSetup, output: str) -> None:
    """Removes what was kept for a validation only: no rank writes, and prunes, any more."""
    rules = Retention.of(setup.config.train)
    try:
        prune_checkpoints(RunFolder(output).checkpoints, rules, setup.total_steps)
    except (TerraFMError, OSError) as error:
        logger.warning("older checkpoints stay: %s", one_line(error))


def _tell_of_extension(setup: TrainingSetup, output: str, done: int, before: int) -> None:
    """Says in the terminal and in events.jsonl what the schedules do where a run is extended."""
    now = setup.total_steps
    last, coming = setup.schedules_of(before).at(done - 1), setup.schedules.at(done)
    jumps = {key: (getattr(last, key), getattr(coming, key)) for key in _SCHEDULED}
    words = ", ".join(
        f"{_SCHEDULED[key]} {old:.4g} to {new:.4g}" for key, (old, new) in jumps.items()
    )
    text = f"the run takes {now} steps, {before} before; from step {done} on: {words}"
    EventLog(output).add("extended", text, step=done, steps=now, steps_before=before, **jumps)


def _with_absolute_weights(config: Config) -> Config:
    changes: dict[str, Any] = {}
    if config.model.init is not None:
        init = absolute(config.model.init)
        changes["model"] = config.model.model_copy(update={"init": init})
    if config.distil.teacher is not None:
        teacher = absolute(config.distil.teacher)
        changes["distil"] = config.distil.model_copy(update={"teacher": teacher})
    return config.model_copy(update=changes)


def _write_config(setup: TrainingSetup, output: str, extend: bool = False) -> None:
    uri, dataset = RunFolder(output).config, setup.dataset
    words = ["terrafm", "pretrain", "--config", uri, "--data", dataset.uri, "--output", output]
    # Asked for until a checkpoint has the new length.
    again = command_line(*words, *(["--extend"] if extend else []))
    write_bytes(uri, f"# {without_secrets(again)}\n{setup.config.to_yaml()}".encode())
    record = {
        "uri": dataset.uri,
        "version": dataset.manifest.version,
        "fingerprint": dataset.fingerprint,
    }
    write_bytes(RunFolder(output).dataset, (to_json(record, indent=1) + "\n").encode())


def _result(output: str, total: int, resumed_from: int) -> RunResult:
    lines = read_metrics(output)
    best = read_best(RunFolder(output).checkpoints)
    checkpoint = RunFolder(output).checkpoint(total)
    if not any(uri == checkpoint for _, uri in list_checkpoints(RunFolder(output).checkpoints)):
        raise TerraFMError(f"the run ended without its last checkpoint {checkpoint}")
    newest = lines[-1] if lines else {}
    weights = tuple(exported_weights(output))
    return RunResult(output, checkpoint, total, resumed_from, newest, best, weights)


class _ProgressMonitor:
    """Follows metrics.jsonl in a thread and tells `progress`."""

    def __init__(self, output: str, total: int, progress: Progress | None) -> None:
        self._output = output
        self._total = total
        self._progress = progress
        self._pause = _POLL_SECONDS if is_local(output) else _REMOTE_POLL_SECONDS
        self._notices = Alerts()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _ProgressMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _follow(self) -> None:
        while not self._stop.wait(self._pause):
            self._tell()

    def _tell(self) -> None:
        lines = read_metrics(self._output)
        step = lines[-1]["step"] if lines else 0
        for notice in self._notices.new(lines[-1]) if lines else ():
            logger.warning("%s", notice)
        if lines and self._progress is not None:
            best = read_best(RunFolder(self._output).checkpoints)
            shown = {} if best is None else {"best": asdict(best)}
            self._progress(step, self._total, lines[-1] | shown)


def dry_run(
    config: Config,
    data: str,
    output: str,
    *,
    measure: bool = True,
    validate: Validate | None = None,
    extend: bool = False,
) -> dict[str, Any]:
    """What a run would cost, from one measured step on this machine; writes nothing.

    A cluster that RAY_ADDRESS names is asked whether it can carry the run.

    Raises:
        UsageError: as `pretrain`.
    """
    from terrafm.train.driver.estimate import estimate  # Only this verb needs the plain step.

    config, data, output = _with_absolute_weights(config), absolute(data), absolute(output)
    checked = check_run(config, data, output, validate, extend)
    setup, done = checked.setup, checked.resumed_from
    # A Ray of this machine is started with as many logical CPUs as the run needs.
    if done < setup.total_steps and os.environ.get("RAY_ADDRESS"):
        supervisor, _ = _start_ray(checked, output, threading.Event())
        supervisor.check_possible()
    started = time.perf_counter()
    figures = {"steps_done": done} | estimate(setup, measure=measure)
    return figures | {"estimate_seconds": round(time.perf_counter() - started, 2)}


def describe(result: RunResult) -> str:
    """How a run ended: a line on that, one on its best checkpoint, and those of its weights."""
    best = result.best
    choice = ""
    if best is not None:
        uri = join(result.checkpoint.rpartition("/")[0], best.checkpoint)
        choice = f"\nbest checkpoint {uri}: {best.metric} {best.value:.4g}"
    choice += "".join(f"\nweights {uri}" for uri in result.exported)
    if result.resumed_from >= result.steps:
        return f"nothing to do: {result.checkpoint} is the last of {result.steps} steps{choice}"
    # A step whose samples were all damaged and left out has none, one not finite has null.
    last = result.metrics.get("loss")
    loss = "" if last is None else f", loss {last:.4f}"
    resumed = f", resumed at {result.resumed_from}" if result.resumed_from else ""
    return f"{result.steps} steps{resumed}{loss}, checkpoint {result.checkpoint}{choice}"

"""Checks that configuration, dataset and run folder fit, trains, and says how it ended."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from terrafm.config import Config
from terrafm.data.shards.manifest import find_version
from terrafm.errors import TerraFMError, UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import load_state, load_weights
from terrafm.ray_runtime import ensure_ray
from terrafm.shell import command_line
from terrafm.storage import (
    absolute,
    exists,
    is_local,
    join,
    list_names,
    read_json,
    remove,
    write_bytes,
)
from terrafm.storage.faults import one_line
from terrafm.storage.lease import lease
from terrafm.train.checkpoints.best import Best, read_best
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import (
    CHECKPOINTS,
    DamagedCheckpointError,
    DatasetOf,
    list_checkpoints,
    newest_intact,
    part_of,
    read_record,
    step_name,
)
from terrafm.train.events import EventLog
from terrafm.train.loggers import read_metrics
from terrafm.train.loop import FAILURE_FILE
from terrafm.train.notices import Notices
from terrafm.train.setup import TrainingSetup
from terrafm.train.supervisor import Supervisor, logical_cpus
from terrafm.train.trackers import TrackedRun, check_trackers
from terrafm.train.validations import (
    Validate,
    Validation,
    ValidationLog,
    ValidationTask,
    open_validation,
)
from terrafm.train.validator import Validator

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
DATASET_FILE = "dataset.json"
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
class RunResult:
    """A finished run.

    Attributes:
        output: URI of the run's folder.
        checkpoint: URI of the checkpoint at the last step.
        steps: finished steps.
        resumed_from: step this call went on from; equal to `steps` where all was done before.
        metrics: newest line of metrics.jsonl.
        best: the best checkpoint by validation; None where nothing was validated.
    """

    output: str
    checkpoint: str
    steps: int
    resumed_from: int
    metrics: dict[str, Any]
    best: Best | None = None


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
    config, data, output = _with_absolute_init(config), absolute(data), absolute(output)
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
    checked = _check(config, data, output, validate, extend)
    setup, validation, log = checked.setup, checked.validation, checked.log
    resumed_from, total = checked.resumed_from, setup.total_steps
    if checked.finished:
        return _result(output, total, resumed_from)
    ensure_ray(logical_cpus(config))
    validator = _validator(setup, output, validation, log, cancelled, resumed_from)
    supervisor = Supervisor(setup, output, cancelled, validator)
    trained = resumed_from >= total
    if not trained:
        supervisor.check_possible()
    remove(join(output, FAILURE_FILE))
    _write_config(setup, output, checked.extended_from is not None)
    for difference in checked.told:
        logger.warning("%s: %s", _NOT_NEEDED, difference)
    if checked.extended_from is not None:
        _tell_of_extension(setup, output, resumed_from, checked.extended_from)
    with _Watch(output, total, progress), nullcontext() if validator is None else validator:
        if not trained:
            supervisor.run()
    if validation is not None:
        _prune(setup, output)
    return _result(output, total, resumed_from)


def check_runs(config: Config, data: str) -> int:
    """Looks whether a configuration can train on a dataset, as `pretrain` does; writes nothing.

    Returns:
        The steps of the run.

    Raises:
        UsageError: as `pretrain`.
    """
    return _check(config, data, None, None, False).setup.total_steps


@dataclass(frozen=True)
class _Checked:
    """A run that nothing speaks against.

    Attributes:
        setup: configuration and dataset.
        resumed_from: finished steps of the run in the output folder.
        validation: of its checkpoints, and what is known of them; None where nothing is validated.
        log: see `validation`.
        finished: nothing is left to train or to validate.
        told: settings that differ from those of the start and are not needed any more.
        extended_from: steps that the run was to take before; None where it takes as many now.
    """

    setup: TrainingSetup
    resumed_from: int = 0
    validation: Validation | None = None
    log: ValidationLog | None = None
    finished: bool = False
    told: Sequence[str] = ()
    extended_from: int | None = None


def _check(
    config: Config, data: str, output: str | None, validate: Validate | None, extend: bool
) -> _Checked:
    """Everything that is known to speak against a run before Ray is asked; writes nothing.

    The one list for a run, its dry run, and the trials of a sweep, which have no output yet.
    What a run needs only at its start or while it trains is not asked of one that is past it.

    Raises:
        UsageError: see `pretrain`.
    """
    if output is None:
        checked = _Checked(TrainingSetup.open(config, data))
    else:
        checked = _check_output(_open_setup(config, data, output), output, extend)
        if config.validation.every_steps:
            log = ValidationLog(output, config.validation, checked.setup.total_steps)
            checked = replace(checked, log=log)
    trained = checked.resumed_from >= checked.setup.total_steps
    if trained and (checked.log is None or checked.log.due() is None):
        return replace(checked, finished=True)
    task = ValidationTask(config, data, checked.setup.dataset.fingerprint)
    checked = replace(checked, validation=open_validation(task, validate))
    if checked.resumed_from == 0:
        _check_init(config)
    check_trackers(config.train.trackers)
    return checked


def _validator(
    setup: TrainingSetup,
    output: str,
    validation: Validation | None,
    log: ValidationLog | None,
    cancelled: threading.Event,
    resumed_from: int,
) -> Validator | None:
    if validation is None or log is None:
        return None
    config = setup.config
    return Validator(
        validation,
        log,
        EventLog(output),
        TrackedRun(output, resumed_from, config.model_dump(mode="json"), "validation"),
        config.validation,
        trackers=config.train.trackers,
        cancelled=cancelled,
    )


def _prune(setup: TrainingSetup, output: str) -> None:
    """Removes what was kept for a validation only: no rank writes, and prunes, any more."""
    rules = Retention.of(setup.config.train)
    try:
        prune_checkpoints(join(output, CHECKPOINTS), rules, setup.total_steps, {})
    except (TerraFMError, OSError) as error:
        logger.warning("older checkpoints stay: %s", one_line(error))


def _open_setup(config: Config, data: str, output: str) -> TrainingSetup:
    """The setup on the dataset's version that the run in `output` began with, else the newest.

    A dataset that has no such version is another one: `check_continues` judges that.
    """
    recorded = _recorded_fingerprint(output)
    known = recorded is not None and find_version(data, recorded) is not None
    return TrainingSetup.open(config, data, recorded if known else None)


def _recorded_fingerprint(output: str) -> str | None:
    """Of the dataset that the run in `output` trains on; None where there is no run yet."""
    for _, checkpoint in reversed(list_checkpoints(join(output, CHECKPOINTS))):
        try:
            return str(part_of(read_record(checkpoint), "dataset", checkpoint)["fingerprint"])
        except DamagedCheckpointError as error:
            logger.debug("%s", error)
    try:
        remedy = "nothing is trained yet, it is made anew"
        recorded = read_json(join(output, DATASET_FILE), remedy, DatasetOf)
    except TerraFMError as error:
        # A crash has cut it short before the first checkpoint: there is nothing to go on with.
        logger.warning("%s", error)
        return None
    return None if recorded is None else str(recorded["fingerprint"])


def _check_output(setup: TrainingSetup, output: str, extend: bool = False) -> _Checked:
    """How far the run in `output` is, after checking that it can be continued."""
    folder = join(output, CHECKPOINTS)
    newest, _ = newest_intact(folder)
    if newest is None:
        foreign = [n for n in list_names(output) if not n.startswith(".")]
        if foreign and not exists(join(output, CONFIG_FILE)):
            raise UsageError(
                f"{output} is not empty and holds no run (found {foreign[0]}): "
                "choose an empty folder"
            )
        return _Checked(setup)
    record = read_record(newest)
    told = setup.check_continues(record, newest)
    done, before, now = int(record["step"]), setup.horizon_of(record), setup.total_steps
    train = setup.config.train
    asked = f"train.epochs={train.epochs:g}" if train.steps is None else "train.steps"
    if now < done:
        raise UsageError(
            f"the run in {output} has done {done} steps, and {asked} asks for {now} in all: ask "
            f"for the {before} it began with, or choose another --output"
        )
    if now != before and not extend:
        raise UsageError(
            f"the run in {output} was to take {before} steps and has done {done}; with {now}, as "
            f"{asked} asks, learning rate, weight decay and momentum would jump: give --extend to "
            f"go on with the schedules of {now} steps, or ask for {before}"
        )
    return _Checked(setup, done, told=told, extended_from=before if now != before else None)


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


def _with_absolute_init(config: Config) -> Config:
    init = config.model.init
    if init is None:
        return config
    model = config.model.model_copy(update={"init": absolute(init)})
    return config.model_copy(update={"model": model})


def _check_init(config: Config) -> None:
    """Fails before any work where the weights to start from cannot be used."""
    if config.model.init is not None:
        weights, _ = load_weights(config.model.init)
        encoder = build_encoder(config.model.name, num_queries=config.model.num_queries)
        load_state(encoder, weights, config.model.init)


def _write_config(setup: TrainingSetup, output: str, extend: bool = False) -> None:
    uri, dataset = join(output, CONFIG_FILE), setup.dataset
    words = ["terrafm", "pretrain", "--config", uri, "--data", dataset.uri, "--output", output]
    # Asked for until a checkpoint has the new length.
    again = command_line(*words, *(["--extend"] if extend else []))
    write_bytes(uri, f"# {again}\n{setup.config.to_yaml()}".encode())
    record = {
        "uri": dataset.uri,
        "version": dataset.manifest.version,
        "fingerprint": dataset.fingerprint,
    }
    write_bytes(join(output, DATASET_FILE), (json.dumps(record, indent=1) + "\n").encode())


def _result(output: str, total: int, resumed_from: int) -> RunResult:
    lines = read_metrics(output)
    best = read_best(join(output, CHECKPOINTS))
    checkpoint = join(output, CHECKPOINTS, step_name(total))
    if not any(uri == checkpoint for _, uri in list_checkpoints(join(output, CHECKPOINTS))):
        raise TerraFMError(f"the run ended without its last checkpoint {checkpoint}")
    return RunResult(output, checkpoint, total, resumed_from, lines[-1] if lines else {}, best)


class _Watch:
    """Follows metrics.jsonl in a thread and tells `progress`."""

    def __init__(self, output: str, total: int, progress: Progress | None) -> None:
        self._output = output
        self._total = total
        self._progress = progress
        self._pause = _POLL_SECONDS if is_local(output) else _REMOTE_POLL_SECONDS
        self._notices = Notices()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Watch:
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
            best = read_best(join(self._output, CHECKPOINTS))
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
    from terrafm.train.estimate import estimate  # Only this verb needs the plain step.

    config, data, output = _with_absolute_init(config), absolute(data), absolute(output)
    checked = _check(config, data, output, validate, extend)
    setup, done = checked.setup, checked.resumed_from
    # A Ray of this machine is started with as many logical CPUs as the run needs.
    if done < setup.total_steps and os.environ.get("RAY_ADDRESS"):
        ensure_ray()
        cancelled = threading.Event()
        validator = _validator(setup, output, checked.validation, checked.log, cancelled, done)
        Supervisor(setup, output, cancelled, validator).check_possible()
    started = time.perf_counter()
    figures = {"steps_done": done} | estimate(setup, measure=measure)
    return figures | {"estimate_seconds": round(time.perf_counter() - started, 2)}


def describe(result: RunResult) -> str:
    """One line that says how a run ended, and one on its best checkpoint."""
    best = result.best
    choice = ""
    if best is not None:
        uri = join(result.checkpoint.rpartition("/")[0], best.checkpoint)
        choice = f"\nbest checkpoint {uri}: {best.metric} {best.value:.4g}"
    if result.resumed_from >= result.steps:
        return f"nothing to do: {result.checkpoint} is the last of {result.steps} steps{choice}"
    # A step whose samples were all damaged and left out has none, one not finite has null.
    last = result.metrics.get("loss")
    loss = "" if last is None else f", loss {last:.4f}"
    resumed = f", resumed at {result.resumed_from}" if result.resumed_from else ""
    return f"{result.steps} steps{resumed}{loss}, checkpoint {result.checkpoint}{choice}"

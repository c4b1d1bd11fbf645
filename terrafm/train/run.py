"""Checks that configuration, dataset and run folder fit, trains, and says how it ended."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from terrafm.config import Config
from terrafm.data.shards.manifest import find_version
from terrafm.errors import TerraFMError, UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import load_state, load_weights
from terrafm.ray_runtime import ensure_ray
from terrafm.storage import (
    absolute,
    exists,
    is_local,
    join,
    list_names,
    read_bytes,
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
    list_checkpoints,
    newest_intact,
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

    Raises:
        UsageError: configuration, dataset, labelled set and run folder do not fit together, or
            another process trains there; nothing was written.
        RunCancelledError: it was cancelled.
        TerraFMError: the run failed.
    """
    # Workers run in folders of their own.
    data, output = absolute(data), absolute(output)
    cancelled = cancelled or threading.Event()
    with lease(output, "terrafm pretrain", on_loss=cancelled.set):
        return _pretrain(config, data, output, progress, cancelled, validate)


def _pretrain(
    config: Config,
    data: str,
    output: str,
    progress: Progress | None,
    cancelled: threading.Event,
    validate: Validate | None,
) -> RunResult:
    setup = _open_setup(config, data, output)
    resumed_from = _check_output(setup, output)
    total = setup.total_steps
    validation = open_validation(ValidationTask(config, data, setup.dataset.fingerprint), validate)
    log = None if validation is None else ValidationLog(output, config.validation, total)
    trained = resumed_from >= total
    if trained and (log is None or log.due() is None):
        return _result(output, total, resumed_from)
    _check_init(config)
    check_trackers(config.train.trackers)
    ensure_ray(logical_cpus(config))
    validator = _validator(setup, output, validation, log, cancelled, resumed_from)
    supervisor = Supervisor(setup, output, cancelled, validator)
    if not trained:
        supervisor.check_possible()
    remove(join(output, FAILURE_FILE))
    _write_config(setup, output)
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
    setup = TrainingSetup.open(config, data)
    _check_init(config)
    check_trackers(config.train.trackers)
    return setup.total_steps


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
            return str(read_record(checkpoint)["dataset"]["fingerprint"])
        except DamagedCheckpointError as error:
            logger.debug("%s", error)
    if not exists(join(output, DATASET_FILE)):
        return None
    return str(json.loads(read_bytes(join(output, DATASET_FILE)))["fingerprint"])


def _check_output(setup: TrainingSetup, output: str) -> int:
    """Finished steps of the run in `output`, after checking that it can be continued."""
    folder = join(output, CHECKPOINTS)
    newest, _ = newest_intact(folder)
    if newest is None:
        foreign = [n for n in list_names(output) if not n.startswith(".")]
        if foreign and not exists(join(output, CONFIG_FILE)):
            raise UsageError(
                f"{output} is not empty and holds no run (found {foreign[0]}): "
                "choose an empty folder"
            )
        return 0
    record = read_record(newest)
    setup.check_continues(record, newest)
    return int(record["step"])


def _check_init(config: Config) -> None:
    """Fails before any work where the weights to start from cannot be used."""
    if config.model.init is not None:
        weights, _ = load_weights(config.model.init)
        encoder = build_encoder(config.model.name, num_queries=config.model.num_queries)
        load_state(encoder, weights, config.model.init)


def _write_config(setup: TrainingSetup, output: str) -> None:
    uri, dataset = join(output, CONFIG_FILE), setup.dataset
    again = f"# terrafm pretrain --config {uri} --data {dataset.uri} --output {output}\n"
    write_bytes(uri, (again + setup.config.to_yaml()).encode())
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


def dry_run(config: Config, data: str, measure: bool = True) -> dict[str, Any]:
    """What a run would cost, from one measured step on this machine; writes nothing.

    Raises:
        UsageError: as `pretrain`.
    """
    from terrafm.train.estimate import estimate  # Only this verb needs the plain step.

    setup = TrainingSetup.open(config, data)
    _check_init(config)
    started = time.perf_counter()
    figures = estimate(setup, measure=measure)
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

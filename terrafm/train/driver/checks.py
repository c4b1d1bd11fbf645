"""What is known to speak against a run before Ray is asked, and how far the run is.

Ray is not imported here: a mistake is told before Ray has been loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from terrafm.config import Config
from terrafm.data.shards.manifest import find_version
from terrafm.errors import TerraFMError, UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import load_state, load_weights
from terrafm.storage import read_json
from terrafm.train.checkpoints.intact import newest_intact
from terrafm.train.checkpoints.store import (
    DamagedCheckpointError,
    DatasetOf,
    list_checkpoints,
    part_of,
    read_record,
)
from terrafm.train.checkpoints.validations import (
    Validate,
    Validation,
    ValidationLog,
    ValidationTask,
    open_validation,
)
from terrafm.train.metrics.trackers import check_trackers
from terrafm.train.run_folder import RunFolder
from terrafm.train.step.feature_distillation import FrozenTeacher
from terrafm.train.step.frozen import check_frozen
from terrafm.train.worker.setup import TrainingSetup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedRun:
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


def check_runs(config: Config, data: str) -> int:
    """Looks whether a configuration can train on a dataset, as `pretrain` does; writes nothing.

    Returns:
        The steps of the run.

    Raises:
        UsageError: as `pretrain`.
    """
    return check_run(config, data, None, None, False).setup.total_steps


def check_run(
    config: Config, data: str, output: str | None, validate: Validate | None, extend: bool
) -> CheckedRun:
    """Everything that is known to speak against a run before Ray is asked; writes nothing.

    The one list for a run, its dry run, and the trials of a sweep, which have no output yet.
    What a run needs only at its start or while it trains is not asked of one that is past it.

    Raises:
        UsageError: see `pretrain`.
    """
    if output is None:
        checked = CheckedRun(TrainingSetup.open(config, data))
    else:
        checked = check_output(open_setup(config, data, output), output, extend)
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
    if not trained:
        _check_teacher(config)
    check_trackers(config.train.trackers)
    return checked


def open_setup(config: Config, data: str, output: str) -> TrainingSetup:
    """The setup on the dataset's version that the run in `output` began with, else the newest.

    A dataset that has no such version is another one: `check_continues` judges that.
    """
    recorded = _recorded_fingerprint(output)
    known = recorded is not None and find_version(data, recorded) is not None
    return TrainingSetup.open(config, data, recorded if known else None)


def _recorded_fingerprint(output: str) -> str | None:
    """Of the dataset that the run in `output` trains on; None where there is no run yet."""
    for _, checkpoint in reversed(list_checkpoints(RunFolder(output).checkpoints)):
        try:
            return str(part_of(read_record(checkpoint), "dataset", checkpoint)["fingerprint"])
        except DamagedCheckpointError as error:
            logger.debug("%s", error)
    try:
        remedy = "nothing is trained yet, it is made anew"
        recorded = read_json(RunFolder(output).dataset, remedy, DatasetOf)
    except TerraFMError as error:
        # A crash has cut it short before the first checkpoint: there is nothing to go on with.
        logger.warning("%s", error)
        return None
    return None if recorded is None else str(recorded["fingerprint"])


def check_output(setup: TrainingSetup, output: str, extend: bool = False) -> CheckedRun:
    """How far the run in `output` is, after checking that it can be continued."""
    folder = RunFolder(output).checkpoints
    newest, _ = newest_intact(folder)
    if newest is None:
        RunFolder(output).check_unused()
        return CheckedRun(setup)
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
    return CheckedRun(setup, done, told=told, extended_from=before if now != before else None)


def _check_init(config: Config) -> None:
    """Fails before any work where the weights to start from cannot be used."""
    uri, frozen = config.model.init, config.model.frozen
    if uri is None and not frozen:
        return
    encoder = build_encoder(
        config.model.name,
        num_queries=config.model.num_queries,
        modalities=config.data.modalities,
    )
    if uri is None:
        check_frozen(encoder, frozen, None, None, "")
        return
    weights, contract = load_weights(uri)
    load_state(encoder, weights, uri, new_sensors=True)
    check_frozen(encoder, frozen, weights, contract, uri, config.data.modalities)


def _check_teacher(config: Config) -> None:
    """Fails before any work where the encoder to distil cannot be used."""
    frozen = FrozenTeacher.load(config)
    if frozen is not None and frozen.statistics is None:
        logger.warning(
            "%s states no statistics of its input: it is given pixels normalised by those of the "
            "dataset",
            config.distil.teacher,
        )

"""What is known of a run's validations, and which checkpoint is next.

validation.jsonl in the run's folder has one line for each validated checkpoint, in the order of
the steps. Only the driver writes it, always whole: whoever is killed leaves no half line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol

from terrafm.config import Config, ValidationConfig
from terrafm.errors import UsageError
from terrafm.storage import read_json_lines, write_json_lines
from terrafm.storage.records import Finite, StepLine, open_keys
from terrafm.train.checkpoints.best import Best, choose_best, hold, read_best, write_best
from terrafm.train.checkpoints.store import CHECKPOINTS, list_checkpoints
from terrafm.train.metrics.trackers import TrackedPicture
from terrafm.train.run_folder import RunFolder, step_name


@open_keys
class _Line(StepLine):
    """What a line of validation.jsonl must say."""

    metrics: dict[str, Finite | None]
    tail: NotRequired[list[str]]


@dataclass(frozen=True)
class ValidationTask:
    """What a validation is told about its run.

    Attributes:
        config: the whole tree.
        data: URI of the run's dataset.
        fingerprint: of the dataset's version that the run trains on.
    """

    config: Config
    data: str
    fingerprint: str


class Validation(Protocol):
    """Scores checkpoints; is sent to another process, so its class can be imported there."""

    def check(self) -> Sequence[str]:
        """Names of the metrics that every score will have.

        Raises:
            UsageError: the images cannot be scored for this run.
        """
        ...

    def score(self, checkpoint: str) -> dict[str, Any]:
        """The line of validation.jsonl for a checkpoint: JSON-able, with `metrics` by name.

        Args:
            checkpoint: URI of its folder.
        """
        ...

    def pictures(self, checkpoint: str) -> Sequence[TrackedPicture]:
        """What trackers are shown of a checkpoint; none where nobody draws them.

        Args:
            checkpoint: URI of its folder.
        """
        ...


Validate = Callable[[ValidationTask], Validation]
"""Makes the validation of a run. Handed in: training itself knows no evaluation."""


def open_validation(task: ValidationTask, validate: Validate | None) -> Validation | None:
    """The validation that a configuration asks for; None where it asks for none.

    Raises:
        UsageError: it asks for one and none was handed in, the images cannot be scored, or
            `validation.metric` is none of its metrics.
    """
    config = task.config.validation
    if not config.every_steps:
        return None
    if validate is None:
        raise UsageError(
            f"validation.every_steps={config.every_steps} needs to be told how: give pretrain() "
            "validate=terrafm.eval.validation.CheckpointValidation, or set it to 0"
        )
    validation = validate(task)
    names = validation.check()
    if config.metric not in names:
        raise UsageError(
            f"validation.metric={config.metric} is no metric of this validation; there are "
            f"{', '.join(names)}"
        )
    return validation


def read_validations(run_folder: str) -> list[dict[str, Any]]:
    """The lines of a run's validation.jsonl; empty where nothing was validated.

    Raises:
        TerraFMError: it is not readable.
    """
    remedy = "remove it, and the run goes on without its past scores"
    return read_json_lines(RunFolder(run_folder).validation, remedy, _Line)


class ValidationLog:
    """validation.jsonl, best.json and held.json of one run, for its driver.

    Args:
        run_folder: URI of the run.
        config: when to validate, and what the best is.
        total_steps: of the run; its last checkpoint is validated as well.

    Attributes:
        best_step: step of the checkpoint that best.json names, as of the last `name_best`.
    """

    def __init__(self, run_folder: str, config: ValidationConfig, total_steps: int) -> None:
        self._run_folder = run_folder
        self._folder = RunFolder(run_folder).checkpoints
        self._config = config
        self._total_steps = total_steps
        self._lines = read_validations(run_folder)
        self._held: set[int] | None = None
        self.best_step: int | None = None

    @property
    def best(self) -> Best | None:
        """The best checkpoint among those that are still there."""
        there = {step for step, _ in list_checkpoints(self._folder)}
        scores = [(line["step"], line["metrics"]) for line in self._lines if line["step"] in there]
        return choose_best(scores, self._config.metric)

    def due(self) -> tuple[int, str] | None:
        """Step and URI of the checkpoint to validate next: the newest one, older ones never.

        Where validations are slower than checkpoints come, those in between are passed over.
        """
        newest = self._lines[-1]["step"] if self._lines else 0
        for step, uri in reversed(list_checkpoints(self._folder)):
            if step <= newest:
                break
            if step == self._total_steps or step % self._config.every_steps == 0:
                return step, uri
        return None

    def add(self, step: int, score: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a line and names the best; nothing is done twice when it is repeated.

        Args:
            step: of the checkpoint.
            score: what `Validation.score` gave.

        Returns:
            The line.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take it; nothing was added.
        """
        line = {"step": step, "checkpoint": f"{CHECKPOINTS}/{step_name(step)}", **score}
        before = [known for known in self._lines if known["step"] < step]
        self._write([*before, line])
        self.name_best()
        return line

    def go_back(self, step: int) -> None:
        """Forgets what lies past the step that the run goes on from, and looks at what is best.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take it.
        """
        kept = [line for line in self._lines if line["step"] <= step]
        if len(kept) < len(self._lines):
            self._write(kept)
        self.name_best()

    def name_best(self) -> None:
        """Brings best.json up to date.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take it.
        """
        best = self.best
        if best != read_best(self._folder):
            write_best(self._folder, best)
        self.best_step = None if best is None else best.step

    def hold(self, steps: Collection[int]) -> None:
        """Keeps the checkpoints of these steps, and no longer those held before.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take it.
        """
        if set(steps) != self._held:
            hold(self._folder, steps)
            self._held = set(steps)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        write_json_lines(RunFolder(self._run_folder).validation, lines)
        self._lines = lines

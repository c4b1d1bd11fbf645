"""One trial: the same `pretrain` as everyone's, its checkpoints scored while it trains.

A trial is a folder `trials/0003` of the sweep. In it lie runs, `run-0` and, where population
based training put another trial's state in its place, `run-1` and so on; and `scores.jsonl`, one
line for each checkpoint that was scored. A trial that is started again goes on from both.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX
from typing_extensions import TypedDict, override

from terrafm.config import Config, build_config
from terrafm.config.yaml_text import parse_yaml
from terrafm.errors import RayStartError, TerraFMError
from terrafm.storage import (
    exists,
    join,
    list_names,
    read_bytes,
    read_json,
    read_json_lines,
    remove,
    write_bytes,
    write_json_lines,
)
from terrafm.storage.records import Count, StepLine, open_keys
from terrafm.train.checkpoints.store import (
    DamagedCheckpointError,
    fork_checkpoint,
    list_checkpoints,
)
from terrafm.train.driver.checks import check_runs
from terrafm.train.driver.pretrain import pretrain
from terrafm.train.metrics.log import read_metrics
from terrafm.train.run_folder import RunFolder, write_failure
from tuning.objective import score_checkpoint
from tuning.search_space import apply

SCORES_FILE = "scores.jsonl"
_POLL_SECONDS = 0.5
# Of Tune's own numbering; searchers give hexadecimal names of eight.
_DIGITS = 5
# A group that starts cannot be ended before its ranks have come.
_CLEANUP_SECONDS = 90.0
_POINTER = "pointer.json"
# In a run that began where another stood: that pointer.
_ORIGIN = "origin.json"
# Of metrics.jsonl: what a checkpoint's line says about the teacher.
_TEACHER = ("loss", "teacher_entropy", "effective_rank", "tiles_per_second")


@open_keys
class _Score(StepLine):
    """What a line of scores.jsonl must say."""

    run: str
    collapsed: bool


@open_keys
class _Pointer(TypedDict):
    """What a pointer must say; nothing, before the first checkpoint was scored."""

    run: str | None
    checkpoint: str | None
    step: Count | None


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep share.

    Attributes:
        config: the configuration that points are applied to, as plain values.
        data: URI of the dataset.
        labelled: URI of the labelled set.
        modalities: that are scored.
        output: URI of the sweep's folder.
    """

    config: dict[str, Any]
    data: str
    labelled: str
    modalities: tuple[str, ...]
    output: str

    def config_of(self, choice: dict[str, Any]) -> Config:
        """The configuration of a trial's run.

        Args:
            choice: what Tune hands a trial.
        """
        # A sweep scores all checkpoints itself.
        base = build_config(self.config | {"tune": {}, "validation": {}})
        point = point_of(choice)
        seed = point.get("train.seed", base.train.seed) + seed_of(choice)
        return apply(base, point | {"train.seed": seed}, "trial")


def trial_folder(output: str, trial_id: str) -> str:
    """URI of a trial's folder: the end of Tune's id, a number where points are known ahead."""
    name = trial_id.rpartition("_")[2]
    return join(output, "trials", f"{int(name):04d}" if len(name) == _DIGITS else name)


def point_of(choice: dict[str, Any]) -> dict[str, Any]:
    """The keys of the configuration in what Tune hands a trial."""
    whole = choice | dict(choice.get("drawn", {}))
    return {key: value for key, value in whole.items() if "." in key}


def seed_of(choice: dict[str, Any]) -> int:
    """Which of a point's runs a trial is, from 0; the first where there is but one."""
    # Points that were drawn ahead say it; a searcher's repetitions are numbered by Tune.
    return int(choice.get("drawn", {}).get("seed", choice.get(TRIAL_INDEX, 0)))


class PretrainTrial(tune.Trainable):  # type: ignore[misc]
    """A trial in its own process; one step of Tune's is one checkpoint."""

    @override
    def setup(self, config: dict[str, Any], task: dict[str, Any]) -> None:
        """Checks the trial's configuration.

        Args:
            config: see `point_of` and `seed_of`.
            task: `TrialTask` as plain values.
        """
        self._task = TrialTask(**task)
        self._folder = trial_folder(self._task.output, self.trial_id)
        self._config = self._task.config_of(config)
        self._total = check_runs(self._config, self._task.data)
        self._pointer: dict[str, Any] | None = None
        self._scored: Iterator[dict[str, Any]] | None = None
        self._newest: dict[str, Any] = {}
        self._failure: Exception | None = None
        self._cancelled = threading.Event()
        self._training: threading.Thread | None = None

    @override
    def step(self) -> dict[str, Any]:
        """Waits for the next checkpoint; its measures.

        Raises:
            Exception: what may pass when the trial is started again, a Ray that was too slow to
                start among it: Tune does so. A failure that would only repeat itself ends the
                trial, and stands in its folder.
        """
        if self._scored is None:
            remove(RunFolder(self._folder).failure)
            self._scored = self._lines()
        line = next(self._scored, None)
        if line is not None:
            self._newest = line
            return self._metrics(line)
        if isinstance(self._failure, TerraFMError) and not isinstance(self._failure, RayStartError):
            write_failure(self._folder, self._failure)
        elif self._failure is not None:
            raise self._failure
        return {tune.result.DONE: True}

    @override
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Where another trial may go on from: a pointer, the state is in the run's folder."""
        pointer = {key: self._newest.get(key) for key in ("run", "checkpoint", "step")}
        Path(checkpoint_dir, _POINTER).write_text(json.dumps(pointer))

    @override
    def load_checkpoint(self, checkpoint: str) -> None:
        """Of this trial or of the one whose state it takes."""
        pointer = read_pointer(str(Path(checkpoint, _POINTER)), self._task.output)
        self._pointer = pointer if pointer["run"] is not None else None

    @override
    def cleanup(self) -> None:
        """Ends the training: Ray Train frees what it holds only where its controller ends."""
        self._cancelled.set()
        if self._training is not None:
            self._training.join(_CLEANUP_SECONDS)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Trains, and gives a line of scores.jsonl for each checkpoint."""
        run = self._open_run()
        lines = read_scores(self._folder)
        known = {line["step"]: line for line in lines if line["run"] == run}
        self._training = threading.Thread(target=self._train, args=(run,), daemon=True)
        self._training.start()
        for step, checkpoint in self._checkpoints(run, self._training):
            # Those of before an interruption anew: Tune may have lost them.
            line = known.get(step) or self._score(run, step, checkpoint)
            if line is None:
                continue
            if step not in known:
                lines.append(line)
                self._write(lines)
            yield line

    def _metrics(self, line: dict[str, Any]) -> dict[str, Any]:
        """What Tune learns of a line."""
        metrics = {key: value for key, value in line.items() if isinstance(value, int | float)}
        if line["collapsed"]:
            # Its accuracy is an accident: searchers and schedulers learn the worst.
            metrics |= dict.fromkeys(self._task.config["tune"]["objectives"], 0.0)
        last = line["step"] >= self._total
        if last and self._training is not None:
            # Tune ends the process next.
            self._training.join()
        return metrics | {tune.result.DONE: last or line["collapsed"]}

    def _open_run(self) -> str:
        """The run to go on with: the newest one, or a new one that begins where another stood."""
        names = [name for name in list_names(self._folder) if name.startswith("run-")]
        newest = join(self._folder, f"run-{max(len(names) - 1, 0)}")
        pointer = self._pointer
        if pointer is None or (pointer["run"] == newest and self._is_of(newest)):
            return newest
        run = join(self._folder, f"run-{len(names)}")
        fork_checkpoint(pointer["checkpoint"], RunFolder(run).checkpoints, self._config)
        write_bytes(RunFolder(run).config, self._config.to_yaml().encode())
        write_bytes(join(run, _ORIGIN), json.dumps(pointer).encode())
        return run

    def _is_of(self, run: str) -> bool:
        """Whether a run has this trial's configuration, or has not begun."""
        uri = RunFolder(run).config
        return not exists(uri) or parse_yaml(read_bytes(uri)) == parse_yaml(self._config.to_yaml())

    def _train(self, run: str) -> None:
        try:
            pretrain(self._config, self._task.data, run, cancelled=self._cancelled)
        except Exception as error:  # noqa: BLE001 - `step` raises it in Tune's thread
            self._failure = error

    def _checkpoints(self, run: str, training: threading.Thread) -> Iterator[tuple[int, str]]:
        """Its own checkpoints as they come, each once; ends after the training."""
        seen = _began(run)
        while True:
            # Before the look: what was written until it ended is seen.
            ended = not training.is_alive()
            coming = [c for c in list_checkpoints(RunFolder(run).checkpoints) if c[0] > seen]
            for step, checkpoint in coming:
                yield step, checkpoint
                seen = step
            if ended:
                return
            if not coming:
                time.sleep(_POLL_SECONDS)

    def _score(self, run: str, step: int, checkpoint: str) -> dict[str, Any] | None:
        """A line of scores.jsonl; None where the checkpoint has gone meanwhile."""
        lines = [line for line in read_metrics(run) if line["step"] <= step]
        newest = lines[-1] if lines else {}
        try:
            measures = score_checkpoint(
                checkpoint,
                self._task.labelled,
                self._config.data.global_size,
                self._task.modalities,
            )
        except (DamagedCheckpointError, FileNotFoundError):
            return None
        return {
            "step": step,
            "of": self._total,
            "run": run,
            "checkpoint": checkpoint,
            "collapsed": bool(newest.get("alarm")),
            "alarm": newest.get("alarm", []),
            **{key: newest[key] for key in _TEACHER if newest.get(key) is not None},
            **measures,
        }

    def _write(self, lines: list[dict[str, Any]]) -> None:
        write_json_lines(join(self._folder, SCORES_FILE), lines)


def _began(run: str) -> int:
    """The step that a run went on from; 0 where it began by itself."""
    found = read_json(join(run, _ORIGIN), f"remove {run}, and its trial begins anew", StepLine)
    return 0 if found is None else int(found["step"])


def read_pointer(uri: str, output: str) -> dict[str, Any]:
    """The pointer in a checkpoint of Tune's, which lies among its pickles.

    Args:
        uri: of the pointer.
        output: URI of the sweep's folder; nothing outside of it is pointed at.

    Raises:
        TerraFMError: it is missing, or no pointer of this sweep.
    """
    remedy = "remove its trial's folder, and start the sweep again with --resume"
    found = read_json(uri, remedy, _Pointer)
    if found is None:
        raise TerraFMError(f"{uri} is missing: {remedy}")
    if found["run"] is None:
        return found
    run, checkpoint, step = found["run"], found["checkpoint"], found["step"]
    if checkpoint is None or step is None:
        raise TerraFMError(f"{uri} names a run and no checkpoint of it: {remedy}")
    inside = run.startswith(join(output, "trials/")) and ".." not in run.split("/")
    if not inside or checkpoint != RunFolder(run).checkpoint(step):
        raise TerraFMError(f"{uri} leads to {checkpoint}, which is no checkpoint of it: {remedy}")
    return found


def read_scores(folder: str) -> list[dict[str, Any]]:
    """The lines of a trial's scores.jsonl, oldest first; empty before the first."""
    remedy = "remove it, and its trial is scored anew"
    return read_json_lines(join(folder, SCORES_FILE), remedy, _Score)

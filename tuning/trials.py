"""The table of a sweep's trials, and what its terminal shows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pandas as pd
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from terrafm.config import settings
from terrafm.errors import TerraFMError
from terrafm.storage import join, to_json, write_bytes
from terrafm.storage.parquet import read_parquet
from terrafm.terminal import console
from terrafm.train.run_folder import read_failure
from tuning.objective import MEASURES
from tuning.trial import point_of, read_scores, seed_of, trial_folder

TABLE_FILE = "trials.parquet"
FINISHED, COLLAPSED, STOPPED, FAILED, OPEN = "finished", "collapsed", "stopped", "failed", "open"
STATES = {
    FINISHED: "trained to its last step",
    COLLAPSED: "its teacher collapsed, and it was ended",
    STOPPED: "the scheduler ended it before its last step",
    FAILED: "it cannot go on, or failed again and again",
    OPEN: "not done: terrafm sweep --resume goes on with it",
}
"""State of a trial -> what it means."""


def trial_rows(output: str, trials: Sequence[TuneTrial], seeds: int) -> list[dict[str, Any]]:
    """A row for each trial: where it stands, what it tried, what its newest checkpoint is worth.

    Args:
        output: URI of the sweep's folder.
        trials: in the order of their numbers.
        seeds: runs of each point.
    """
    rows = []
    for number, trial in enumerate(trials):
        folder = trial_folder(output, trial.trial_id)
        scores = read_scores(folder)
        newest = scores[-1] if scores else {}
        drawn = trial.config.get("drawn", {})
        collapsed = bool(newest.get("collapsed"))
        failure = read_failure(folder)
        rows.append(
            {
                "trial": number,
                "point": drawn.get("index", number // seeds),
                "arm": drawn.get("arm"),
                "seed": seed_of(trial.config),
                "state": _state(trial, newest, failure),
                "steps": newest.get("step", 0),
                "of_steps": newest.get("of"),
                "seconds": float((trial.last_result or {}).get("time_total_s", 0.0)),
                "alarm": ", ".join(newest.get("alarm", [])) or None,
                "failure": None if failure is None else str(failure),
                # What a collapsed teacher scores is an accident.
                **{name: None if collapsed else newest.get(name) for name in MEASURES},
                **{key: to_json(value) for key, value in point_of(trial.config).items()},
                "run": newest.get("run"),
                "folder": folder,
            }
        )
    return rows


def _state(trial: TuneTrial, newest: dict[str, Any], failure: TerraFMError | None) -> str:
    if newest.get("collapsed"):
        return COLLAPSED
    if failure is not None or trial.status == TuneTrial.ERROR:
        return FAILED
    if newest and newest["step"] >= newest["of"]:
        return FINISHED
    return STOPPED if trial.status == TuneTrial.TERMINATED else OPEN


def write_table(output: str, rows: list[dict[str, Any]]) -> None:
    """Writes trials.parquet; values of the configuration are JSON, a column for each key."""
    frame = pd.DataFrame(rows)
    for key in swept_columns(frame):
        frame[key] = frame[key].astype("string")
    buffer = BytesIO()
    frame.sort_values("trial").to_parquet(buffer, index=False)
    write_bytes(join(output, TABLE_FILE), buffer.getvalue())


def read_table(output: str) -> pd.DataFrame:
    """trials.parquet of a sweep's folder, with the values of the configuration decoded."""
    frame = pd.DataFrame(read_parquet(join(output, TABLE_FILE)).to_pandas())
    for key in swept_columns(frame):
        values = [None if pd.isna(v) else json.loads(v) for v in frame[key]]
        frame[key] = pd.Series(values, index=frame.index, dtype=object)
    return frame


def swept_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that are keys of the configuration, in its order."""
    return [key for key, *_ in settings() if key in frame.columns]


class TrialWatch(Callback):  # type: ignore[misc]
    """Keeps trials.parquet current and tells the terminal; Tune keeps its state with its own.

    Trials are numbered in the order in which they were made: Tune's own list has another one
    after an interruption.

    Args:
        output: URI of the sweep's folder.
        objective: the measure to tell.
        seeds: runs of each point.
    """

    def __init__(self, output: str, objective: str, seeds: int) -> None:
        self._output = output
        self._objective = objective
        self._seeds = seeds
        self._numbers: dict[str, int] = {}

    def get_state(self) -> dict[str, Any]:
        """The numbers of the trials."""
        return {"numbers": dict(self._numbers)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes up the numbers of an interrupted sweep."""
        self._numbers = dict(state["numbers"])

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Numbers the new trials."""
        self._number(trials)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Names the trial's values."""
        tried = ", ".join(f"{k}={_short(v)}" for k, v in point_of(trial.config).items())
        arm = trial.config.get("drawn", {}).get("arm")
        self._say(
            trials,
            trial,
            f"{arm or tried or 'the configuration as it is'}, seed {seed_of(trial.config)}",
        )

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tells a checkpoint's score."""
        if "step" not in result or result.get("done"):
            return
        value = result.get(self._objective)
        name = self._objective.replace("_", " ")
        told = "collapsed" if result.get("collapsed") else f"{name} {value:.3f}"
        self._say(trials, trial, f"step {result['step']} of {result['of']}: {told}")

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tells how it ended."""
        rows = self._rows(trials)
        row = rows[self._numbers[trial.trial_id]]
        # Tune calls this before it says so itself.
        state = STOPPED if row["state"] == OPEN else row["state"]
        why = f": {row['failure']}" if row["failure"] else ""
        value = row[self._objective]
        told = "" if value is None else f"{self._objective.replace('_', ' ')} {value:.3f}, "
        text = f"{state} at step {row['steps']}: {told}{row['seconds']:.0f} s{why}"
        self._say(trials, trial, text)
        write_table(self._output, rows)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tells why it failed."""
        lines = str(trial.get_error() or "").strip().splitlines()
        self._say(trials, trial, f"failed{': ' + lines[-1] if lines else ''}")
        write_table(self._output, self._rows(trials))

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        """The last state of all trials."""
        write_table(self._output, self._rows(trials))

    def _number(self, trials: list[TuneTrial]) -> None:
        for trial in trials:
            self._numbers.setdefault(trial.trial_id, len(self._numbers))

    def _rows(self, trials: list[TuneTrial]) -> list[dict[str, Any]]:
        self._number(trials)
        ordered = sorted(trials, key=lambda trial: self._numbers[trial.trial_id])
        return trial_rows(self._output, ordered, self._seeds)

    def _say(self, trials: list[TuneTrial], trial: TuneTrial, text: str) -> None:
        self._number(trials)
        number = self._numbers[trial.trial_id]
        console.say(f"  trial {number:>3}  {text}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

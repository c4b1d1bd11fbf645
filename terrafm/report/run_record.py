"""What lies in a run's folder, read for a report: bounded, and whatever is torn is passed over."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from terrafm.config import Config, load_config
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import absolute, exists, join, list_names, read_bytes, read_json_lines
from terrafm.storage.lease_record import LEASE_FILE, Holder
from terrafm.storage.records import Count, Finite, StepLine, load_record, open_keys
from terrafm.train.run_folder import RunFolder, read_failure

# Of a run on another machine, whose process cannot be asked.
_SILENT_SECONDS, _SILENT_LINES = 600.0, 20.0
# Of years that have four digits.
_LATEST = 2.5e11

Moment = Annotated[Finite, Field(ge=0, le=_LATEST)]
"""Seconds since 1970."""
Seconds = Annotated[Finite, Field(ge=0, le=1e10)]
"""A time that passed."""
Workers = Annotated[Count, Field(le=10**7)]


@open_keys
class _Event(TypedDict):
    """A line of events.jsonl, as far as a report needs it."""

    time: Moment
    event: str
    step: NotRequired[Count]
    steps: NotRequired[Count]
    workers: NotRequired[Workers]
    seconds: NotRequired[Seconds]
    reason: NotRequired[str | None]
    warning: NotRequired[str]
    cpus: NotRequired[Annotated[Finite, Field(ge=0, le=1e7)]]
    gpus: NotRequired[Workers]
    cluster: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


@open_keys
class _Score(StepLine):
    """A line of validation.jsonl, as far as a report needs it."""

    metrics: dict[str, Finite | None]
    samples: NotRequired[Count]
    tail: NotRequired[list[str]]
    per_class: NotRequired[dict[str, dict[str, dict[str, Finite]]]]


@open_keys
class _DatasetOf(TypedDict):
    uri: str
    version: NotRequired[Count]
    fingerprint: NotRequired[str]


@open_keys
class _Best(TypedDict):
    step: Count
    metric: str
    value: Finite


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        uri: of the folder.
        name: short, for keys and headlines.
        config: None where it is missing, or of another version of this software.
        command: that runs it again.
        lines: of metrics.jsonl.
        events: of events.jsonl, in order.
        scores: of validation.jsonl.
        dataset: `uri`, `version`, `fingerprint`; empty where nothing is known.
        best: `step`, `metric`, `value` of the best checkpoint.
        checkpoints: names of their folders.
        nonfinite, quarantined: lines of the lists of faults.
        failure: why the workers could not go on.
        holder: of the folder's lease.
        now: seconds since 1970 at which it was read.
    """

    uri: str
    name: str
    config: Config | None
    command: str
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    dataset: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    checkpoints: tuple[str, ...] = ()
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""
    holder: Holder | None = None
    now: float = 0.0

    def column(self, key: str) -> NDArray[np.float64]:
        """(N,) values of a key of metrics.jsonl; NaN where a line has no number."""
        if key not in self._columns:
            self._columns[key] = np.array([number(line.get(key)) for line in self.lines])
            if key == "time":
                times = self._columns[key]
                times[(times < 0) | (times > _LATEST)] = np.nan
        return self._columns[key]

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.float64]]:
        return {}

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """(N,) finished steps of each line."""
        return np.array([line["step"] for line in self.lines], dtype=np.float64)

    @property
    def done(self) -> int:
        """Finished steps, as far as the folder tells."""
        last = [int(self.steps[-1])] if len(self.lines) else [0]
        finished = [int(e.get("step", 0)) for e in self.events if e["event"] == "finished"]
        return max(last + finished)

    @cached_property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None where they cannot be told."""
        ended = [e["step"] for e in self.events if e["event"] == "finished" and "step" in e]
        if self.config is None:
            return ended[-1] if ended else None
        train = self.config.train
        if train.steps:
            return train.steps
        length = self.config.data.epoch_length or self._dataset_tiles()
        return None if not length else max(1, round(train.epochs * length / train.global_batch))

    def _dataset_tiles(self) -> int | None:
        from terrafm.data.shards.manifest import find_version

        try:
            found = find_version(self.dataset["uri"], self.dataset["fingerprint"])
        except (KeyError, OSError, TerraFMError):
            return None
        return None if found is None else found.tiles

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        total = self.total_steps
        return bool(total and self.done >= total)

    @cached_property
    def last_sign(self) -> float | None:
        """Seconds since 1970 of the newest line or event; None where none tells its time."""
        moments = [float(self.events[-1]["time"])] if self.events else []
        times = self.column("time")
        if len(times) and not math.isnan(times[-1]):
            moments.append(float(times[-1]))
        return max(moments, default=None)

    @cached_property
    def running(self) -> bool:
        """Whether somebody trains there now, as far as can be told from here."""
        here = None if self.holder is None else self.holder.runs_here()
        if self.holder is None or here is not None:
            return bool(here)
        if self.last_sign is None:
            return True
        gaps = np.diff(self.column("time")[-100:])
        usual = float(np.nanmedian(gaps)) if np.isfinite(gaps).any() else 0.0
        return self.now - self.last_sign < max(_SILENT_SECONDS, _SILENT_LINES * usual)

    @property
    def seconds_per_step(self) -> float | None:
        """Of the newest lines, without pauses; None where nothing is known."""
        steps, times = self.steps[-200:], self.column("time")[-200:]
        if len(steps) > 2 and np.isfinite(np.diff(times)).any():
            return float(np.nanmedian(np.diff(times) / np.maximum(np.diff(steps), 1)))
        rates = self.column("tiles_per_second")[-200:]
        if self.config is None or not np.isfinite(rates).any():
            return None
        return self.config.train.global_batch / max(float(np.nanmedian(rates)), 1e-9)


def still_runs(uri: str) -> bool:
    """Whether a run may write more, without reading its metrics: one of another machine may."""
    holder = _holder(absolute(uri))
    return holder is not None and holder.runs_here() is not False


def read_run(uri: str, name: str) -> RunRecord:
    """Reads a run's folder.

    Args:
        uri: of the folder.
        name: that the report gives the run.

    Raises:
        UsageError: a file is larger than any run writes.
        TerraFMError: the store does not answer.
    """
    uri = absolute(uri)
    config, command = _read_config(uri)
    run = RunFolder(uri)
    names = [n for n in list_names(run.checkpoints) if n.startswith("step_")]
    return RunRecord(
        uri=uri,
        name=name,
        config=config,
        command=command,
        lines=read_json_lines(run.metrics, kind=StepLine),
        events=read_json_lines(run.events, kind=_Event),
        scores=read_json_lines(run.validation, kind=_Score),
        dataset=_small(run.dataset, _DatasetOf) or {},
        best=_small(run.best, _Best),
        checkpoints=tuple(names),
        nonfinite=read_json_lines(run.nonfinite, kind=StepLine),
        quarantined=read_json_lines(run.quarantine),
        failure=_failure(uri),
        holder=_holder(uri),
        now=time.time(),
    )


def number(value: Any) -> float:
    """A number of a stranger's file; NaN for whatever else stands there."""
    return float(value) if type(value) in (int, float) else math.nan


def _read_config(uri: str) -> tuple[Config | None, str]:
    place = RunFolder(uri).config
    if not exists(place):
        return None, ""
    first = read_bytes(place).partition(b"\n")[0].decode("utf-8", "replace")
    command = first.removeprefix("# ").strip() if first.startswith("# ") else ""
    try:
        return load_config(place, []), command
    except UsageError:
        # Of another version of this software: the curves are worth a page without it.
        return None, command


def _small(uri: str, kind: Any) -> dict[str, Any] | None:
    """A small record; None where there is none, or none that is whole."""
    try:
        found: Mapping[str, Any] | None = load_record(uri, kind)
    except TerraFMError:
        return None
    return None if found is None else dict(found)


def _failure(uri: str) -> str:
    try:
        return str(read_failure(uri) or "")
    except TerraFMError:
        return ""


def _holder(uri: str) -> Holder | None:
    try:
        return Holder.read(read_bytes(join(uri, LEASE_FILE)))
    except (OSError, TerraFMError):
        return None

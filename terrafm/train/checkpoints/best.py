"""The best checkpoint by a metric of validation, and those that a validation still needs.

Two small files of a run's `checkpoints/`, written whole by the driver and read by whoever prunes:

    best.json  step, checkpoint, metric, mode, value of the best one
    held.json  steps that are being validated, or will be next
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from terrafm.errors import UsageError
from terrafm.storage import exists, join, load_record, remove, write_bytes
from terrafm.storage.records import Count, Finite
from terrafm.train.checkpoints.files import MARKER
from terrafm.train.run_folder import BEST_FILE, step_name

BEST = "best"
HELD_FILE = "held.json"


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run so far.

    Attributes:
        step: finished steps.
        metric: name of the metric that decides.
        mode: whether the largest or the smallest value is the best.
        value: of the metric.
    """

    step: Count
    metric: str
    mode: Literal["max", "min"]
    value: Finite

    @property
    def checkpoint(self) -> str:
        """Name of its folder."""
        return step_name(self.step)


@dataclass(frozen=True)
class _Held:
    """What held.json says."""

    steps: tuple[Count, ...] = ()


def choose_best(scores: Iterable[tuple[int, Mapping[str, Any]]], metric: str) -> Best | None:
    """The best of some checkpoints; the earliest of equals, so that it does not move in vain.

    Args:
        scores: step and metrics of each; one whose metric is missing or not finite never wins.
        metric: name of the metric.
    """
    mode: Literal["max", "min"] = "min" if _is_better_small(metric) else "max"
    sign = 1 if mode == "max" else -1
    ranked = [
        (sign * value, -step)
        for step, metrics in scores
        if isinstance(value := metrics.get(metric), int | float) and math.isfinite(value)
    ]
    if not ranked:
        return None
    value, step = max(ranked)
    return Best(-step, metric, mode, sign * value)


def _is_better_small(metric: str) -> bool:
    # Ranks of partners, and the losses of Wang and Isola.
    return metric.endswith("/median_rank") or metric.startswith(("uniformity/", "alignment/"))


def read_best(folder: str) -> Best | None:
    """The best checkpoint of a run; None where none is known.

    Args:
        folder: URI of the run's `checkpoints`.

    Raises:
        TerraFMError: best.json is not readable.
    """
    return load_record(join(folder, BEST_FILE), Best, "remove it")


def write_best(folder: str, best: Best | None) -> None:
    """Replaces best.json; without a best there is none.

    Raises:
        StoreRefusedError, StoreFailedError: disk or store do not take it.
    """
    uri = join(folder, BEST_FILE)
    if best is None:
        remove(uri)
        return
    document = {
        "step": best.step,
        "checkpoint": best.checkpoint,
        "metric": best.metric,
        "mode": best.mode,
        "value": best.value,
    }
    write_bytes(uri, (json.dumps(document, indent=1) + "\n").encode())


def hold(folder: str, steps: Collection[int]) -> None:
    """Says which checkpoints a validation still needs.

    Raises:
        StoreRefusedError, StoreFailedError: disk or store do not take it.
    """
    uri = join(folder, HELD_FILE)
    if not steps:
        remove(uri)
        return
    write_bytes(uri, (json.dumps({"steps": sorted(steps)}) + "\n").encode())


def held_reasons(folder: str) -> dict[int, str]:
    """Step -> why its checkpoint must stay, whatever the rules of retention say.

    Raises:
        TerraFMError: one of the two files is not readable.
    """
    # In this order: a validation that ends meanwhile names the best before it lets go of it.
    held = load_record(join(folder, HELD_FILE), _Held, "remove it") or _Held()
    best = read_best(folder)
    reasons = dict.fromkeys(held.steps, "validation")
    return reasons if best is None else reasons | {best.step: f"best {best.metric}"}


def find_checkpoint(uri: str) -> str:
    """A checkpoint's URI, where `RUN/checkpoints/best` stands for the best one of a run.

    Raises:
        UsageError: the run has no best checkpoint.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    if name != BEST or exists(join(uri, MARKER)):
        return uri
    best = read_best(folder or ".")
    if best is None:
        raise UsageError(
            f"{uri}: there is no {BEST_FILE}, the run was trained without validation "
            "(validation.every_steps), or none has ended yet"
        )
    return join(folder or ".", best.checkpoint)

"""Which checkpoints of a run stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from terrafm.config import TrainConfig
from terrafm.train.checkpoints.best import held_reasons
from terrafm.train.checkpoints.store import (
    DamagedCheckpointError,
    list_checkpoints,
    read_record,
    remove_checkpoint,
)

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Retention:
    """The rules; a checkpoint stays if one of them keeps it.

    Attributes:
        last: how many of the newest stay.
        every: a checkpoint at a multiple of so many steps stays for ever.
        best: key of metrics.jsonl whose best checkpoint stays.
        best_mode: whether the smallest or the largest value is the best.
    """

    last: int
    every: int | None = None
    best: str | None = None
    best_mode: Literal["min", "max"] = "min"

    @classmethod
    def of(cls, train: TrainConfig) -> Self:
        """The rules of a configuration."""
        return cls(train.keep_checkpoints, train.keep_every, train.keep_best, train.keep_best_mode)

    def reasons(self, checkpoints: Mapping[int, Metrics]) -> dict[int, list[str]]:
        """Why each checkpoint stays.

        Args:
            checkpoints: step -> its line of metrics.

        Returns:
            step -> reasons, for every checkpoint that stays, oldest first.
        """
        steps = sorted(checkpoints)
        why: dict[int, list[str]] = {step: [] for step in steps}
        for step in steps[-self.last :]:
            why[step].append("last")
        for step in steps:
            if self.every is not None and step % self.every == 0:
                why[step].append(f"every {self.every}")
        best = self._best(checkpoints)
        if best is not None:
            why[best].append(f"best {self.best}")
        return {step: reasons for step, reasons in why.items() if reasons}

    def _best(self, checkpoints: Mapping[int, Metrics]) -> int | None:
        """Step of the best value, the newest of equals; what is no finite number does not count."""
        if self.best is None:
            return None
        values = {step: metrics.get(self.best) for step, metrics in checkpoints.items()}
        sign = -1 if self.best_mode == "min" else 1
        ranked = [
            (sign * value, step)
            for step, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        return max(ranked)[1] if ranked else None


def prune_checkpoints(
    folder: str, retention: Retention, newest: int, known: MutableMapping[int, Metrics]
) -> None:
    """Removes the checkpoints that no rule keeps, marker first.

    The best one by validation, and those that a validation still needs, always stay.

    Checkpoints past `newest` are no part of the run's history: the run went on from before them
    because they were damaged. They neither count nor go, and are written anew in their turn.

    Args:
        folder: URI of the run's `checkpoints`.
        retention: the rules.
        newest: step of the checkpoint that was just written.
        known: step -> metrics of checkpoints read before; what is read here is added.

    Raises:
        StoreRefusedError, StoreFailedError: the store does not remove them.
        TerraFMError: what names the best one is not readable.
    """
    found = {step: uri for step, uri in list_checkpoints(folder) if step <= newest}
    if retention.best is not None:
        for step in found.keys() - known.keys():
            known[step] = metrics_of(found[step])
    kept = retention.reasons({step: known.get(step, {}) for step in found})
    for step in found.keys() - kept.keys() - held_reasons(folder).keys():
        remove_checkpoint(found[step])


def metrics_of(uri: str) -> Metrics:
    """The line of metrics in a checkpoint; empty where it is damaged or has none."""
    try:
        metrics: Metrics = read_record(uri)["metrics"]
    except DamagedCheckpointError:
        return {}
    return metrics

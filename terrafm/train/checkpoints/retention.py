"""Which checkpoints of a run stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from terrafm.config import TrainConfig
from terrafm.train.checkpoints.best import held_reasons
from terrafm.train.checkpoints.store import (
    list_checkpoints,
    remove_checkpoint,
)


@dataclass(frozen=True)
class Retention:
    """The rules; a checkpoint stays if one of them keeps it.

    Attributes:
        last: how many of the newest stay.
        every: a checkpoint at a multiple of so many steps stays for ever.
    """

    last: int
    every: int | None = None

    @classmethod
    def of(cls, train: TrainConfig) -> Self:
        """The rules of a configuration."""
        return cls(train.keep_checkpoints, train.keep_every)

    def reasons(self, checkpoints: Iterable[int]) -> dict[int, list[str]]:
        """Why each checkpoint stays.

        Args:
            checkpoints: their steps.

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
        return {step: reasons for step, reasons in why.items() if reasons}


def prune_checkpoints(folder: str, retention: Retention, newest: int) -> None:
    """Removes the checkpoints that no rule keeps, marker first.

    The best one by validation, and those that a validation still needs, always stay.

    Checkpoints past `newest` are no part of the run's history: the run went on from before them
    because they were damaged. They neither count nor go, and are written anew in their turn.

    Args:
        folder: URI of the run's `checkpoints`.
        retention: the rules.
        newest: step of the checkpoint that was just written.

    Raises:
        StoreRefusedError, StoreFailedError: the store does not remove them.
        TerraFMError: what names the best one is not readable.
    """
    found = {step: uri for step, uri in list_checkpoints(folder) if step <= newest}
    kept = retention.reasons(found)
    for step in found.keys() - kept.keys() - held_reasons(folder).keys():
        remove_checkpoint(found[step])

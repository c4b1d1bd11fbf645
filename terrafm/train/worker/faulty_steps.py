"""Steps that went wrong: which tiles they held, and how many are forgiven before the run stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from terrafm.data.samples.batch import HostBatch
from terrafm.errors import TerraFMError


class SkipLimit:
    """Counts steps skipped for an infinite or NaN loss or gradient.

    Args:
        limit: steps in a row that are forgiven.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._in_a_row = 0
        self.total = 0

    def record(self, applied: bool, step: int) -> None:
        """Notes a step's outcome; equal on all ranks.

        Raises:
            TerraFMError: too many steps in a row were skipped.
        """
        if applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        if self._in_a_row > self._limit:
            raise TerraFMError(
                f"step {step}: loss or gradients were not finite {self._in_a_row} times in a "
                "row; lower optim.base_lr, or look at the tiles that the run's nonfinite.jsonl "
                "names (terrafm tile DATASET TILE_ID --output FOLDER)"
            )


def nonfinite_record(
    step: int,
    rank: int,
    grad_norm: float,
    batches: Sequence[HostBatch],
    losses: Sequence[Tensor],
) -> dict[str, Any]:
    """What one rank had in a step that was skipped.

    Args:
        step: counted from 0.
        rank: of the process that calls.
        grad_norm: as the engine gave it; ZeRO 1 to 3 say infinity for NaN too.
        batches: the rank's micro-batches.
        losses: (B,) loss of each row, one tensor for each micro-batch.

    Returns:
        A line of nonfinite.jsonl. `tiles` are those whose loss was not finite; all of the rank's
        where every loss was finite.
    """
    everyone, bad = [], []
    for batch, loss in zip(batches, losses, strict=True):
        finite = loss.isfinite().tolist()
        for row, tile, epoch, position in batch.samples.counted():
            everyone.append({"tile": tile, "epoch": epoch, "position": position})
            if not finite[row]:
                bad.append(everyone[-1])
    return {
        "step": step,
        "rank": rank,
        "loss_finite": not bad,
        # JSON has no NaN.
        "grad_norm": str(grad_norm),
        "tiles": bad or everyone,
    }


def nonfinite_samples(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all ranks' records those to keep: where a loss was not finite, else all."""
    return [record for record in records if not record["loss_finite"]] or list(records)

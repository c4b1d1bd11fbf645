"""Sinkhorn-Knopp centering: teacher targets that use all prototypes alike in every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

ITERATIONS = 3
"""Normalisations of prototypes and samples, as in SwAV and DINOv2."""


@torch.no_grad()
def sinkhorn_center(
    teacher_logits: Sequence[Tensor],
    temperature: float,
    mass: Sequence[Tensor],
    iterations: int = ITERATIONS,
) -> Tensor:
    """The center c for which softmax((g - c) / temperature) are Sinkhorn-Knopp's targets.

    Sinkhorn-Knopp scales Q_bk = r_b exp(g_bk / temperature) in turns so that every prototype k
    gets 1 / K of all mass, and every row b its own mass r_b (DINOv2, arXiv 2304.07193, after
    SwAV, arXiv 2006.09882; there all r_b are equal). Scaling a row is the softmax, scaling
    prototype k is a shift of its logits by -c_k: so the result is a center like any other, found
    from this batch alone. In logarithms, for nothing overflows there.

    Collective where torch.distributed is in use: every rank makes the call, and the center is
    that of the global batch, however it is divided among ranks and micro-batches.

    Args:
        teacher_logits: (G, B, K) of each of this rank's micro-batches.
        temperature: of the teacher.
        mass: (B,) of each micro-batch's samples, not negative; equal for all of a sample's
            views. Only ratios matter.
        iterations: how often both sides are normalised.

    Returns:
        (K,) float32; 0 where no row has mass. Rows without mass, or with logits that are not
        finite, have no part in it.
    """
    rows, masses = [], []
    for logits, each in zip(teacher_logits, mass, strict=True):
        flat = logits.float().flatten(0, 1) / temperature
        whole = torch.isfinite(flat).all(-1)
        rows.append(torch.where(whole.unsqueeze(-1), flat, 0.0))
        masses.append(torch.where(whole, each.float().repeat(len(logits)), 0.0))
    scores, weight = torch.cat(rows), torch.cat(masses)
    total = weight.sum(dtype=torch.float64)
    _all_reduce(total)
    # Mass 0 has the logarithm -inf, and so no part in any sum.
    log_mass = (weight / total).log().float()
    prototypes = scores.shape[-1]
    shift = scores.new_zeros(prototypes)
    row_scale = log_mass
    for iteration in range(iterations):
        if iteration:
            row_scale = log_mass - (scores + shift).logsumexp(-1)
        shift = -math.log(prototypes) - _logsumexp(scores + row_scale.unsqueeze(-1))
    # Where no row has mass, there is nothing to center by.
    return torch.where(total > 0, -temperature * shift, 0.0)


def _logsumexp(terms: Tensor) -> Tensor:
    """Over the rows of all ranks, (n, K) -> (K,); the sums in float64, whatever their order."""
    # A rank may have no rows, as where no patch of its crops is masked.
    highest = terms.amax(0) if len(terms) else terms.new_full(terms.shape[1:], -torch.inf)
    _all_reduce(highest, dist.ReduceOp.MAX)
    sums = (terms - highest).exp().sum(0, dtype=torch.float64)
    _all_reduce(sums)
    return highest + sums.log().float()


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, operation)

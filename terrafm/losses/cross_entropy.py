"""Cross-entropy of all pairs of views, one student view at a time.

The student's logits are the largest tensor of a step: (10, 64, 65536) float32 are 168 MB, and an
expression over all views at once keeps several of that size for the backward pass. Here the
forward pass keeps the logits themselves, the teacher's probabilities and one number per row; the
backward pass makes the gradient view by view, in closed form, in a single tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override


def pairwise_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> list[Tensor]:
    """Cross-entropies of a sample's pairs of different views, averaged, and its entropies.

    With s = logits / temperature, Z_v = sum_k exp s_vk and the n_v teacher views g != v of a
    student view v, the pairs (g, v) of a sample add up to
    sum_v (n_v log Z_v - sum_k Q_vk s_vk), where Q_v = sum_(g != v) q_g, and the gradient in s_vk
    is n_v p_vk - Q_vk.

    Args:
        logits: (V, B, K) float32 student logits, the G global views first.
        teacher: (G, B, K) float32 teacher probabilities; no gradient goes there.
        temperature: of the student.

    Returns:
        Mean cross-entropy over a sample's pairs (B,), differentiable once in `logits`; entropy
        of the student's distribution, mean over its views (B,), without gradient. In nats.
    """
    loss, entropy = _PairwiseCrossEntropy.apply(logits, teacher, temperature)
    return [loss, entropy]


class _PairwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        views, samples, _ = logits.shape
        total = teacher.sum(0)
        log_normaliser = logits.new_empty((views, samples))
        loss, entropy = logits.new_zeros(samples), logits.new_zeros(samples)
        for v in range(views):
            scaled = logits[v] / temperature
            log_normaliser[v] = scaled.logsumexp(-1)
            partners, wanted = _partners(teacher, total, v)
            loss += partners * log_normaliser[v] - _dot(wanted, scaled)
            probabilities = (scaled - log_normaliser[v].unsqueeze(-1)).exp_()
            entropy += log_normaliser[v] - _dot(probabilities, scaled)
        pairs = len(teacher) * (views - 1)
        ctx.save_for_backward(logits, teacher, total, log_normaliser)
        ctx.temperature, ctx.pairs = temperature, pairs
        entropy /= views
        ctx.mark_non_differentiable(entropy)
        return loss / pairs, entropy

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, teacher, total, log_normaliser = ctx.saved_tensors
        weight = (gradients[0] / (ctx.pairs * ctx.temperature)).unsqueeze(-1)
        result = torch.empty_like(logits)
        for v in range(len(logits)):
            partners, wanted = _partners(teacher, total, v)
            torch.div(logits[v], ctx.temperature, out=result[v])
            result[v].sub_(log_normaliser[v].unsqueeze(-1)).exp_()
            result[v].mul_(partners).sub_(wanted).mul_(weight)
        return result, None, None


def _partners(teacher: Tensor, total: Tensor, v: int) -> tuple[int, Tensor]:
    """Number of teacher views that a student view is held against, and their sum (B, K)."""
    if v < len(teacher):
        # Of few views, summed anew: a difference would leave rounding where nothing should be.
        others = [q for g, q in enumerate(teacher) if g != v]
        return len(others), torch.stack(others).sum(0) if others else torch.zeros_like(total)
    return len(teacher), total


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of (B, K), without a product of that size."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products

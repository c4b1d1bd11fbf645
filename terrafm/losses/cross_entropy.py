"""Cross-entropy of all pairs of views, whose gradient takes the place of the logits.

The student's logits are the largest tensor of a step: (10, 64, 65536) float32 are 168 MB, and an
expression over all views at once keeps several of that size for the backward pass. The gradient
has a closed form, so the forward pass makes it, a few views at a time, and keeps nothing else.
Where the caller gives the logits away it lies in their memory: then there is one such tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

# Of the temporaries: enough views at once to keep a GPU busy with few samples, and no more than
# a part of the logits with many.
_MOST_BYTES = 64 * 2**20


def pairwise_cross_entropy(
    logits: Tensor, teacher: Tensor, temperature: float, overwrite: bool = False
) -> list[Tensor]:
    """Cross-entropies of a sample's pairs of different views, averaged, and its entropies.

    With s = logits / temperature, Z_v = sum_k exp s_vk and the n_v teacher views g != v of a
    student view v, the pairs (g, v) of a sample add up to
    sum_v (n_v log Z_v - sum_k Q_vk s_vk), where Q_v = sum_(g != v) q_g, and the gradient in s_vk
    is n_v p_vk - Q_vk.

    Args:
        logits: (V, B, K) float32 student logits, the G global views first.
        teacher: (G, B, K) float32 teacher probabilities; no gradient goes there.
        temperature: of the student.
        overwrite: use the memory of `logits`, which hold no logits afterwards; the backward pass
            can then run once.

    Returns:
        Mean cross-entropy over a sample's pairs (B,), differentiable once in `logits`; entropy
        of the student's distribution, mean over its views (B,), without gradient. In nats.
    """
    loss, entropy = _PairwiseCrossEntropy.apply(logits, teacher, temperature, overwrite)
    return [loss, entropy]


class _PairwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, temperature: float, overwrite: bool
    ) -> tuple[Tensor, Tensor]:
        views, samples, prototypes = logits.shape
        # Detached: autograd must not take the gradient for a later version of the logits.
        scaled = logits.detach().div_(temperature) if overwrite else logits / temperature
        at_once = max(1, _MOST_BYTES // (samples * prototypes * logits.element_size()))
        normalisers, agreements, expectations = [], [], []
        for some, partners, wanted in _groups(scaled, teacher, at_once):
            log_normaliser = some.logsumexp(-1)
            agreements.append(_dot(wanted.expand_as(some), some))
            probabilities = (some - log_normaliser.unsqueeze(-1)).exp_()
            expectations.append(_dot(probabilities, some))
            normalisers.append(log_normaliser)
            if ctx.needs_input_grad[0]:
                # The gradient but for its sign, in one kernel.
                torch.sub(wanted, probabilities, alpha=partners, out=some)
        normaliser = torch.cat(normalisers)
        counts = [len(teacher) - (v < len(teacher)) for v in range(views)]
        partners_of = torch.tensor(counts, dtype=logits.dtype, device=logits.device)
        pairs = len(teacher) * (views - 1)
        loss = (partners_of @ normaliser - torch.cat(agreements).sum(0)) / pairs
        entropy = (normaliser - torch.cat(expectations)).mean(0)
        ctx.save_for_backward(scaled if ctx.needs_input_grad[0] else None)
        ctx.factor, ctx.overwrite = -1 / (pairs * temperature), overwrite
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        weight = (gradients[0] * ctx.factor).unsqueeze(-1)
        # Written to, so that autograd refuses a second backward pass.
        result = gradient.mul_(weight) if ctx.overwrite else gradient * weight
        return result, None, None, None


def _groups(scaled: Tensor, teacher: Tensor, at_once: int) -> list[tuple[Tensor, int, Tensor]]:
    """Views that are held against the same teacher views: they, how many, and their sum (B, K)."""
    # Slices, one by one: views that one call gives together must not be written to.
    groups, count = [], len(teacher)
    for v in range(count):
        # Of few views, summed anew: a difference would leave rounding where nothing should be.
        others = [q for g, q in enumerate(teacher) if g != v]
        wanted = others[0] if len(others) == 1 else sum(others, torch.zeros_like(teacher[0]))
        groups.append((scaled[v : v + 1], len(others), wanted))
    total = teacher.sum(0)
    for start in range(count, len(scaled), at_once):
        groups.append((scaled[start : start + at_once], count, total))
    return groups


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of (V, B, K), without a product of that size."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products

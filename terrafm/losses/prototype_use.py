"""How many prototypes the teacher uses: perplexity of its mean distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The mean over about 20 steps: a batch alone has too few images to use all prototypes.
_MOMENTUM = 0.9


class PrototypeUse(nn.Module):
    """Moving average of the teacher's mean distribution over prototypes.

    A teacher that is sure of every image may still send all of them to a few prototypes: its
    entropy per sample does not show it, the entropy of its mean does.

    Args:
        num_prototypes: K.

    Attributes:
        share: (K,) float32, sums to 1; zeros before the first update. Not part of a checkpoint:
            after a restart it is begun anew.
    """

    share: Tensor

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(num_prototypes), persistent=False)

    @torch.no_grad()
    def update(self, total: Tensor, count: Tensor) -> None:
        """Takes in one step.

        Args:
            total: (K,) sum of the teacher's distributions over the global batch's views.
            count: (1,) views; with 0 the average stays.
        """
        mean = total / count.clamp(min=torch.finfo(total.dtype).tiny)
        old = self.share.to(total.dtype)
        moved = torch.where(old.sum() > 0, old.lerp(mean, 1 - _MOMENTUM), mean)
        self.share.copy_(torch.where(count > 0, moved, old))

    def perplexity(self) -> float | None:
        """Exp of the average's entropy: 1 (one prototype) to K (all alike); None before a step."""
        share = self.share.double()
        if not bool(share.any()):
            return None
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))

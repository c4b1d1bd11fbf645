"""Dual centering of teacher logits: one center of all samples, one of the frequent classes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from terrafm.losses.prototype_use import PrototypeUse
from terrafm.losses.sinkhorn import sinkhorn_center


class DualCentering(nn.Module):
    """Centers teacher logits g: g - alpha * c - (1 - alpha) * c_h (TerraFM, arXiv 2506.06281).

    c is the EMA of the global-batch mean of teacher logits, c_h the same over only the samples
    of a high-frequency land-cover class. alpha = 1 is DINO's centering.

    The EMA takes sums and counts, not means: they add up over micro-batches and ranks whatever
    their sizes. Sums are float64, so that the order of adding does not show.

    Args:
        num_prototypes: K.
        alpha: weight of the global center.
        center_momentum: EMA momentum of both centers.

    Attributes:
        center: (K,) float32, c.
        center_high_frequency: (K,) float32, c_h.
        use: of the prototypes by the teacher, from the same sums over ranks.
    """

    center: Tensor
    center_high_frequency: Tensor

    def __init__(self, num_prototypes: int, alpha: float, center_momentum: float) -> None:
        super().__init__()
        if not all(0 <= v <= 1 for v in (alpha, center_momentum)):
            raise ValueError("alpha and the centers' momentum must be in [0, 1]")
        self.alpha = alpha
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(num_prototypes))
        self.register_buffer("center_high_frequency", torch.zeros(num_prototypes))
        self.use = PrototypeUse(num_prototypes)
        self._pending: Tensor | None = None

    def centered(self, teacher_logits: Tensor, center: Tensor | None = None) -> Tensor:
        """Teacher logits (..., K) minus a center (K,), by default both of dual centering."""
        if center is None:
            center = self.alpha * self.center + (1 - self.alpha) * self.center_high_frequency
        return teacher_logits.float() - center

    @torch.no_grad()
    def batch_center(
        self,
        teacher_logits: Sequence[Tensor],
        teacher_temp: float,
        high_frequency: Sequence[Tensor | None],
        sample_weight: Sequence[Tensor | None],
    ) -> Tensor:
        """What Sinkhorn-Knopp subtracts in place of both centers, (K,), from this batch alone.

        A shift of a prototype's logits that is the same for all samples cancels in
        Sinkhorn-Knopp, so that c and c_h would have no effect there. What dual centering means
        is kept in the samples' masses: each has the weight with which it enters
        alpha * c + (1 - alpha) * c_h, that is alpha / N, and (1 - alpha) / N_h more where its
        class is a high-frequency one. alpha = 1, or a global batch without such a sample, is
        DINOv2's Sinkhorn-Knopp.

        Collective where torch.distributed is in use. Each argument has one entry for each of
        this rank's micro-batches, as in `accumulate`.
        """
        weights = [
            self._weights(*each)
            for each in zip(teacher_logits, high_frequency, sample_weight, strict=True)
        ]
        counts = torch.stack([w.sum(1) for w in weights]).sum(0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        alpha = torch.where(counts[1] > 0, self.alpha, 1.0)
        shares = torch.stack([alpha, 1 - alpha]) / counts.clamp(min=torch.finfo(counts.dtype).tiny)
        return sinkhorn_center(teacher_logits, teacher_temp, [shares @ w for w in weights])

    @torch.no_grad()
    def accumulate(
        self,
        teacher_logits: Tensor,
        high_frequency: Tensor | None,
        sample_weight: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> None:
        """Adds a micro-batch to the pending sums.

        Args:
            teacher_logits: (G, B, K).
            high_frequency: (B,) bool, whether the sample's class is a high-frequency one; None
                where alpha is 1, and c_h is not used.
            sample_weight: (B,) 0 for padding; by default 1.
            teacher: (G, B, K) the distributions made of the logits; without them the use of the
                prototypes is not followed.
        """
        weight = self._weights(teacher_logits, high_frequency, sample_weight)
        crops = teacher_logits.shape[0]
        sums = weight @ teacher_logits.sum(0, dtype=torch.float64)
        counts = crops * weight.sum(1, keepdim=True)
        batch = torch.cat([sums, counts], dim=1)
        used = torch.zeros_like(batch[:1])
        if teacher is not None:
            used[:, :-1] = weight[:1] @ teacher.sum(0, dtype=torch.float64)
            used[:, -1] = counts[0]
        batch = torch.cat([batch, used])
        self._pending = batch if self._pending is None else self._pending + batch

    @torch.no_grad()
    def update_centers(self) -> None:
        """Moves both centers, and the use of prototypes, by the pending sums of all ranks.

        A collective call where torch.distributed is in use: every rank makes it equally often.
        A center without a single sample in the global batch stays.
        """
        pending = self._pending
        if pending is None:
            pending = torch.zeros(
                (3, len(self.center) + 1), dtype=torch.float64, device=self.center.device
            )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(pending)
        self.discard_pending()
        self.use.update(pending[2, :-1], pending[2, -1:])
        sums, counts = pending[:2, :-1], pending[:2, -1:]
        old = torch.stack([self.center, self.center_high_frequency]).double()
        mean = sums / counts.clamp(min=torch.finfo(torch.float64).tiny)
        new = torch.where(counts > 0, old.lerp(mean, 1 - self.center_momentum), old)
        self.center.copy_(new[0])
        self.center_high_frequency.copy_(new[1])

    def discard_pending(self) -> None:
        """Forgets the pending sums, as after a step that was not finite."""
        self._pending = None

    def _weights(
        self, teacher_logits: Tensor, high_frequency: Tensor | None, sample_weight: Tensor | None
    ) -> Tensor:
        """Weights of the samples in both means, (2, B) float64."""
        samples = teacher_logits.shape[1]
        everyone = teacher_logits.new_ones(samples, dtype=torch.float64)
        if sample_weight is not None:
            everyone = sample_weight.double()
        if high_frequency is None:
            if self.alpha < 1:
                raise ValueError("high_frequency is needed where alpha is below 1")
            return torch.stack([everyone, torch.zeros_like(everyone)])
        if high_frequency.shape != (samples,):
            raise ValueError(
                f"high_frequency must be ({samples},), not {tuple(high_frequency.shape)}"
            )
        return torch.stack([everyone, everyone * high_frequency])

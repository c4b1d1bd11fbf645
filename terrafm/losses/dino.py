"""Self-distillation: cross-entropy between the teacher's and the student's distributions."""

from typing import Literal

import torch
from torch import Tensor

from terrafm.losses.centering import DualCentering
from terrafm.losses.cross_entropy import pairwise_cross_entropy
from terrafm.losses.masked_patch import MaskedPatchLoss


class DINOLoss(DualCentering):
    """Multi-crop DINO loss with dual centering (arXiv 2104.14294, 2506.06281).

    For sample b, the mean over all pairs of a teacher view g and a student view v != g of
    -sum_k q_gk log p_vk, with q = softmax((logits - centers) / teacher_temp) and
    p = softmax(logits / student_temp). Everything is float32, outside autocast.

    Args:
        num_prototypes: K.
        student_temp: student temperature.
        alpha: weight of the global center; 1 is DINO.
        center_momentum: EMA momentum of both centers.
        centering: "ema" subtracts the two centers; "sinkhorn" what `batch_center` finds in the
            batch itself. The centers are followed either way.
        masked_patch: hold the loss of masked patches too.

    Attributes:
        masked_patch: that loss, or None; part of the state, but called and updated by itself.
    """

    def __init__(
        self,
        num_prototypes: int,
        student_temp: float = 0.1,
        alpha: float = 0.8,
        center_momentum: float = 0.9,
        centering: Literal["ema", "sinkhorn"] = "ema",
        masked_patch: bool = False,
    ) -> None:
        super().__init__(num_prototypes, alpha, center_momentum)
        if student_temp <= 0:
            raise ValueError("student_temp must be above 0")
        self.student_temp = student_temp
        self.centering = centering
        self.masked_patch = (
            MaskedPatchLoss(num_prototypes, student_temp, center_momentum) if masked_patch else None
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temp: float,
        high_frequency: Tensor | None = None,
        update_centers: bool = True,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, with the centers as they were before it.

        Args:
            student_logits: (V, B, K), the G global views first, in the teacher's order.
            teacher_logits: (G, B, K).
            teacher_temp: teacher temperature.
            high_frequency: (B,) bool, whether the sample's class is a high-frequency one; may
                be None where alpha is 1.
            update_centers: move the centers by this call's logits alone, over all ranks;
                otherwise add them to the sums that `update_centers()` will use.
            sample_weight: (B,) weights of the mean over samples; by default 1.

        Returns:
            Scalar, float32: sum_b w_b l_b / sum_b w_b.

        Raises:
            ValueError: shapes that do not fit, or no pair of different views.
        """
        center = None
        if self.centering == "sinkhorn":
            center = self.batch_center(
                [teacher_logits], teacher_temp, [high_frequency], [sample_weight]
            )
        loss, _, _, teacher = self.per_sample(student_logits, teacher_logits, teacher_temp, center)
        if update_centers:
            pending, self._pending = self._pending, None
            self.accumulate(teacher_logits, high_frequency, sample_weight, teacher)
            self.update_centers()
            self._pending = pending
        else:
            self.accumulate(teacher_logits, high_frequency, sample_weight, teacher)
        if sample_weight is None:
            return loss.mean()
        weight = sample_weight.float()
        return (weight * loss).sum() / weight.sum()

    def per_sample(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temp: float,
        center: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss and entropies of every sample; the centers are used and not changed.

        Args:
            student_logits: (V, B, K), global views first.
            teacher_logits: (G, B, K).
            teacher_temp: teacher temperature.
            center: (K,) subtracted from the teacher's logits; by default that of dual centering.
            overwrite: the student's logits, float32, are given away: their memory becomes that of
                their gradient, and the backward pass can run once.

        Returns:
            Loss (B,), differentiable in the student; entropy of the teacher's distribution,
            mean over its views (B,); the same of the student's (B,), entropies in nats; the
            teacher's distributions (G, B, K).

        Raises:
            ValueError: shapes that do not fit, or no pair of different views.
        """
        self._check_shapes(student_logits, teacher_logits)
        with torch.autocast(student_logits.device.type, enabled=False):
            with torch.no_grad():
                log_q = (self.centered(teacher_logits, center) / teacher_temp).log_softmax(-1)
                q = log_q.exp()
                teacher_entropy = -(q * log_q).sum(-1).mean(0)
            loss, student_entropy = pairwise_cross_entropy(
                student_logits.float(), q, self.student_temp, overwrite
            )
        return loss, teacher_entropy, student_entropy, q

    def _check_shapes(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        prototypes = len(self.center)
        fit = (
            student_logits.ndim == teacher_logits.ndim == 3
            and student_logits.shape[1:] == teacher_logits.shape[1:]
            and student_logits.shape[2] == prototypes
            and 1 <= len(teacher_logits) <= len(student_logits)
        )
        if not fit:
            raise ValueError(
                f"student logits must be (V, B, {prototypes}) and teacher logits "
                f"(G, B, {prototypes}) with G <= V; these are {tuple(student_logits.shape)} "
                f"and {tuple(teacher_logits.shape)}"
            )
        if len(student_logits) < 2:
            raise ValueError("one view has no other view to be compared with")

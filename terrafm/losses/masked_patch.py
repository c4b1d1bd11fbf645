"""Masked patches: the student says what the teacher sees where its own view is covered."""

import torch
import torch.nn.functional as F
from torch import Tensor

from terrafm.losses.centering import DualCentering


class MaskedPatchLoss(DualCentering):
    """Cross-entropy of patch tokens (iBOT, arXiv 2111.07832, eq. 2; DINOv2, arXiv 2304.07193).

    Of a masked position, -sum_k q_k log p_k with q = softmax((teacher logits - center) /
    teacher_temp) and p = softmax(student logits / student_temp), everything in float32.

    The center is one for all patches, the EMA of the mean over the global batch's masked
    positions, as in DINOv2: `DualCentering` with alpha 1. A tile's class, which c_h goes by, is
    that of most of its ground and says nothing of a single patch.

    Args:
        num_prototypes: K.
        student_temp: student temperature.
        center_momentum: EMA momentum of the center.
    """

    def __init__(self, num_prototypes: int, student_temp: float, center_momentum: float) -> None:
        super().__init__(num_prototypes, alpha=1.0, center_momentum=center_momentum)
        self.student_temp = student_temp
        # Never anything but zeros, so no part of a checkpoint.
        unused = self.center_high_frequency
        self.register_buffer("center_high_frequency", unused, persistent=False)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temp: float,
        center: Tensor | None = None,
    ) -> Tensor:
        """The loss of every masked position; the center is used and not changed.

        Args:
            student_logits: (m, K) of the masked view.
            teacher_logits: (m, K) of the same positions of the same crops, not masked.
            teacher_temp: teacher temperature.
            center: (K,) subtracted from the teacher's logits; by default the moving average.

        Returns:
            (m,) float32 in nats, differentiable in the student.
        """
        with torch.autocast(student_logits.device.type, enabled=False):
            with torch.no_grad():
                q = (self.centered(teacher_logits, center) / teacher_temp).softmax(-1)
            return F.cross_entropy(student_logits.float() / self.student_temp, q, reduction="none")

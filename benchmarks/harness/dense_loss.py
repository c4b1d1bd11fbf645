"""The loss over all views at once, as expressions that autograd differentiates.

What `terrafm.losses.DINOLoss` computes view by view: the peer of benchmarks and the reference of
tests/reference/test_loss.py.
"""

import torch
from torch import Tensor

from terrafm.losses import DINOLoss


class DenseDINOLoss(DINOLoss):
    """DINOLoss whose student terms are formed for all views together."""

    def per_sample(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temp: float,
        center: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss and entropies of every sample, see `DINOLoss.per_sample`."""
        global_views, views = len(teacher_logits), len(student_logits)
        with torch.no_grad():
            log_q = (self.centered(teacher_logits, center) / teacher_temp).log_softmax(-1)
            q = log_q.exp()
            teacher_entropy = -(q * log_q).sum(-1).mean(0)
        scaled = student_logits.float() / self.student_temp
        log_normaliser = scaled.logsumexp(-1)
        agreement = torch.einsum("gbk,vbk->gvb", q, scaled)
        pairs = log_normaliser - agreement
        same = torch.eye(global_views, views, dtype=torch.bool, device=q.device)
        pairs = pairs.masked_fill(same.unsqueeze(-1), 0.0)
        loss = pairs.sum((0, 1)) / (global_views * (views - 1))
        with torch.no_grad():
            expected = [
                ((s - z.unsqueeze(-1)).exp() * s).sum(-1)
                for s, z in zip(scaled, log_normaliser, strict=True)
            ]
            student_entropy = (log_normaliser - torch.stack(expected)).mean(0)
        return loss, teacher_entropy, student_entropy, q

"""The loss of distillation: tokens of a student against those of a frozen teacher."""

import torch
from torch import Tensor


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of each token, as in lightly-train's distillation v2.

    l = |s - t|^2 / D. A bias of the projector takes up what all tokens of the teacher share, which
    a cosine would mostly be made of.

    Args:
        student: (n, D) tokens, projected to the teacher's width.
        teacher: (n, D) tokens.

    Returns:
        (n,) float32; no gradient goes to the teacher.
    """
    with torch.autocast(student.device.type, enabled=False):
        return (student.float() - teacher.detach().float()).square().mean(dim=-1)

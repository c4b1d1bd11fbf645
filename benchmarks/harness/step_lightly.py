"""DINO as lightly's users write it: its head, loss and momentum update around our encoder.

One modality, no drop path. Backbone and head start from the weights of our contestant, the
optimizer and its settings are ours, and so are the pixels: what differs is the step.
"""

import copy
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from harness.step_contestants import measure
from harness.step_work import SETTINGS, StepWork
from terrafm.data.samples.batch import Batch, Crops, normalise
from terrafm.modalities import MODALITIES
from terrafm.models.dino_head import DINOHead
from terrafm.train.step.distillation import Network, build_student_and_teacher
from terrafm.train.step.optimizer import BETAS, GROUPS, group_of, write_settings

MODALITY = "s2_l2a"


class Dino(nn.Module):
    """The model of lightly's DINO example."""

    def __init__(self, network: Network, modality: str = MODALITY) -> None:
        super().__init__()
        self._modality = modality
        self.student_backbone = network.encoder
        self.student_head = _head(network.head)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = _head(network.head)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x: Tensor) -> Tensor:
        """The student's logits."""
        return self.student_head(self.student_backbone(x, self._modality))

    def forward_teacher(self, x: Tensor) -> Tensor:
        """The teacher's logits."""
        return self.teacher_head(self.teacher_backbone(x, self._modality))


def lightly(work: StepWork) -> dict[str, Any]:
    """One process, lightly's loop: view by view."""
    config = work.config
    (batch,) = work.batches()
    model = Dino(build_student_and_teacher(config)[0])
    criterion = DINOLoss(
        config.head.num_prototypes,
        student_temp=config.loss.student_temp,
        center_momentum=config.loss.center_momentum,
    )
    optimizer = torch.optim.AdamW(_groups(model), lr=SETTINGS.lr, betas=BETAS)
    write_settings(optimizer.param_groups, SETTINGS)
    trained = [p for p in model.parameters() if p.requires_grad]

    def step() -> float:
        views = _views(batch)
        teacher_out = [model.forward_teacher(v) for v in views[: config.data.global_crops]]
        student_out = [model.forward(view) for view in views]
        loss = criterion(teacher_out, student_out, teacher_temp=SETTINGS.teacher_temp)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        update_teacher(model, SETTINGS.teacher_momentum)
        return float(loss.detach())

    return measure(work, step)


def update_teacher(model: Dino, momentum: float) -> None:
    """The moving average of both parts."""
    update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
    update_momentum(model.student_head, model.teacher_head, m=momentum)


def _head(ours: DINOHead) -> DINOProjectionHead:
    """Lightly's head with the weights of ours."""
    first, second, third = (m for m in ours.mlp if isinstance(m, nn.Linear))
    prototypes = ours.last_layer.weight
    head = DINOProjectionHead(
        first.in_features, first.out_features, third.out_features, len(prototypes)
    )
    linear = [m for m in head.layers.modules() if isinstance(m, nn.Linear)]
    for theirs, our in zip(linear, (first, second, third), strict=True):
        theirs.load_state_dict(our.state_dict())
    with torch.no_grad():
        head.last_layer.weight_v.copy_(prototypes)
    return head


def _groups(model: Dino) -> list[dict[str, Any]]:
    """Our parameter groups; fusion, which one modality does not use, has no gradient."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[group_of(name)].append(parameter)
    return [
        {"name": name, "rate": 1.0, "params": parameters} for name, parameters in groups.items()
    ]


def _views(batch: Batch) -> list[Tensor]:
    """Normalised pixels (B, C, S, S) of every view, the global ones first."""
    rows = len(batch.samples)
    crops = [batch.global_crops] + ([batch.local_crops] if batch.local_crops else [])
    return [view for sizes in crops for view in _normalised(sizes).split(rows)]


def _normalised(crops: Crops) -> Tensor:
    channels = MODALITIES[MODALITY].channels
    mean, std = torch.full((channels,), 0.27), torch.full((channels,), 0.07)
    return normalise(crops.pixels[MODALITY], mean, std, MODALITY)

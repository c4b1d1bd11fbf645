"""Distillation of a larger encoder into the student: its tokens, of the same pixels.

The teacher is frozen (DINOv2, arXiv 2304.07193, section 5). Student and teacher see the same crops
by the same sensors (arXiv 2106.05237), and a linear map of the student's tokens has to be the
teacher's. What is validated and exported is the student's moving average, as in DINOv2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from terrafm.config import Config
from terrafm.data.samples.batch import Batch, HostBatch
from terrafm.errors import UsageError
from terrafm.losses import feature_loss
from terrafm.models.encoder import Encoder, init_layers
from terrafm.models.packing import Packed
from terrafm.models.patch_embed import PATCH_SIZE
from terrafm.models.weights import (
    encoder_from_state,
    held_modalities,
    infer_model_name,
    load_weights,
)
from terrafm.train.step.compiler import check_compiler
from terrafm.train.step.engine import Engine
from terrafm.train.step.schedules import StepSettings
from terrafm.train.step.timer import Phases, untimed
from terrafm.train.step.training_step import (
    StepStatistics,
    TrainedNetwork,
    TrainingStep,
    build_pair,
    finite_share,
)
from terrafm.train.step.views import ViewPacker

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Modality -> (mean (C,), std (C,)) in physical units."""


@dataclass(frozen=True)
class FrozenTeacher:
    """An encoder that is distilled.

    Attributes:
        model: its architecture.
        encoder: in eval mode, without gradients.
        statistics: that it was trained with; None where its weights state none.
    """

    model: str
    encoder: Encoder
    statistics: Statistics | None

    @classmethod
    def load(cls, config: Config) -> FrozenTeacher | None:
        """The teacher that `distil.teacher` names; None where none is distilled.

        Raises:
            UsageError: its weights cannot be read, or are not of an encoder that sees what the
                student is to be trained on.
        """
        uri = config.distil.teacher
        if uri is None:
            return None
        try:
            state, contract = load_weights(uri)
            encoder = encoder_from_state(state, uri)
        except UsageError as error:
            raise UsageError(f"distil.teacher: {error}") from None
        wanted = config.data.modalities
        known = held_modalities(state) if contract is None else list(contract.modalities)
        if missing := [m for m in wanted if m not in known]:
            raise UsageError(
                f"distil.teacher: {uri} was trained on {', '.join(sorted(known))} and does not "
                f"know {', '.join(missing)}: take another teacher, or leave out of "
                "data.modalities what it does not know"
            )
        if contract is not None and contract.patch_size != PATCH_SIZE:
            raise UsageError(
                f"distil.teacher: {uri} has patches of {contract.patch_size} pixels, the student "
                f"of {PATCH_SIZE}: their tokens are not of the same ground"
            )
        if not encoder.fusion_loaded and config.data.fusion and len(wanted) > 1:
            raise UsageError(
                f"distil.teacher: {uri} has no fusion, so that views of several sensors would be "
                "fused untrained: set data.fusion=false, or data.modalities to one sensor"
            )
        statistics = None
        if contract is not None:
            statistics = {
                m: (
                    torch.tensor(contract.modalities[m].mean, dtype=torch.float32),
                    torch.tensor(contract.modalities[m].std, dtype=torch.float32),
                )
                for m in wanted
            }
        if config.train.compile:
            check_compiler()
            encoder.compile_blocks()
        return cls(infer_model_name(state, uri), encoder.requires_grad_(False), statistics)


class DistilledNetwork(TrainedNetwork):
    """Encoder, and linear maps of its CLS and patch tokens to the teacher's width.

    Args:
        config: of the run.
        width: of the teacher's tokens.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config)
        dim = self.encoder.embed_dim
        self.head = nn.ModuleDict({name: nn.Linear(dim, width) for name in ("cls", "patch")})
        init_layers(self.head)

    def forward(self, views: Packed) -> tuple[Tensor, Tensor]:
        """Tokens of images, of which all positions of the first size are asked for.

        Returns:
            (images + positions, width) projected tokens, the CLS tokens first, and (images, D)
            CLS tokens of the encoder.
        """
        features = self.encoder.forward_packed(views)
        images = sum(grid[0] for grid in views.grids)
        cls, patches = features[:images], features[images:]
        return torch.cat([self.head["cls"](cls), self.head["patch"](patches)]), cls


class FeatureDistillation(TrainingStep):
    """The student's tokens are to be the teacher's, through a linear map.

    Of a sample with V crops, G of them global with N patches each, the loss is

        1/V sum_v |P s_v - t_v|^2 / D + 1/(G N) sum_v,n |Q s_vn - t_vn|^2 / D

    with CLS tokens s_v and t_v of the student and the teacher, patch tokens s_vn and t_vn, the
    teacher's width D, and affine maps P and Q that are learned with the student.

    Args:
        engine: holds the student, a `DistilledNetwork`.
        average: float32 copy of the student.
        frozen: the teacher.
        statistics: of the student's input; also of the teacher's where its weights state none.
        global_batch: samples of one step over all ranks.
        precision: "float32" or "bf16", for the teacher's forward pass.
        device: where the step runs.
    """

    def __init__(
        self,
        engine: Engine,
        average: DistilledNetwork,
        frozen: FrozenTeacher,
        *,
        statistics: Statistics,
        global_batch: int,
        precision: str,
        device: torch.device,
    ) -> None:
        super().__init__(engine, average, precision=precision, device=device)
        self._frozen = frozen.encoder.to(device)
        self.frozen_model = frozen.model
        self._global_batch = global_batch
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._student_views, self._teacher_views = (
            ViewPacker(values, encoder.patch_embed.modalities, device=device, dtype=dtype)
            for values, encoder in (
                (statistics, average.encoder),
                (frozen.statistics or statistics, frozen.encoder),
            )
        )

    @property
    def frozen_parameters(self) -> int:
        """Numbers of the teacher's weights, which every rank holds whole."""
        return sum(p.numel() for p in self._frozen.parameters())

    @override
    def forward_backward(
        self, batches: Iterable[HostBatch], settings: StepSettings, phases: Phases = untimed
    ) -> StepStatistics:
        """See `TrainingStep`."""
        sums = torch.zeros(4, dtype=torch.float64, device=self._device)
        losses = []
        for host_batch in batches:
            with phases("prepare"):
                batch = host_batch.to(self._device)
                weight = batch.samples.weight
                views, shown = self._views(batch)
            with phases("teacher"), torch.no_grad(), torch.autocast(**self._autocast):
                taught = self._frozen.forward_packed(shown)
            with phases("forward"):
                guessed, cls = self.engine.forward(views)
                self.teacher_features.add(cls[: len(weight)])
                errors = feature_loss(guessed, taught)
                of_cls, of_patches = self._per_sample(errors, len(cls), batch)
                loss = of_cls + of_patches
                share = finite_share(loss, weight, self._global_batch)
            with phases("backward"), torch.autocast(self._device.type, enabled=False):
                self.engine.backward(share)
            terms = torch.stack([loss, of_cls, of_patches, torch.ones_like(loss)]).detach()
            sums += (terms.double() * weight).sum(dim=1)
            losses.append(loss.detach())
        return StepStatistics(sums, ("loss", "cls_error", "patch_error"), losses)

    @override
    def finish(self, settings: StepSettings, phases: Phases = untimed) -> tuple[bool, float]:
        """See `TrainingStep`."""
        with phases("optimizer"):
            outcome = self.engine.step(settings)
        with phases("teacher"):
            if outcome.applied:
                self.engine.update_teacher(self.teacher, settings.teacher_momentum)
        return outcome.applied, outcome.grad_norm

    def _views(self, batch: Batch) -> tuple[Packed, Packed]:
        """What the student and the teacher are given: the same, each normalised as it was."""
        crops = [c for c in (batch.global_crops, batch.local_crops) if c is not None]
        drawn = [c.student for c in crops]
        views, shown = (
            packer.pack(crops, drawn) for packer in (self._student_views, self._teacher_views)
        )
        images, height, width = views.grids[0]
        # Of the global crops, whose tokens are those that dense tasks read.
        every = torch.arange(images * height * width, device=self._device)
        views.masked = shown.masked = every
        views.drop_path_key = batch.drop_path_key.flatten()
        return views, shown

    @staticmethod
    def _per_sample(errors: Tensor, images: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Means over a sample's CLS tokens and over its patches, (B,) each."""
        rows = len(batch.samples.weight)
        crops = batch.global_crops.size // rows
        of_patches = errors[images:].view(crops, rows, -1).mean(dim=(0, 2))
        return errors[:images].view(-1, rows).mean(dim=0), of_patches


def build_student_and_average(
    config: Config, width: int
) -> tuple[DistilledNetwork, DistilledNetwork]:
    """Student with seeded initial weights and its moving average; see `build_pair`."""
    return build_pair(config, lambda: DistilledNetwork(config, width))

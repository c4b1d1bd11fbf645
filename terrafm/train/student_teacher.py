"""Self-distillation of a student by the moving average of itself; knows no Ray, no DeepSpeed.

The order within a step is the paper's (arXiv 2506.06281): teacher forward, student forward, loss
with the old centers, backward over all micro-batches, finite check, clip, optimizer, EMA of
encoder and head, centers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from terrafm.config import Config
from terrafm.data.samples.batch import Batch, Crops, HostBatch, normalise
from terrafm.losses import DINOLoss, koleo_loss
from terrafm.models.dino_head import DINOHead
from terrafm.models.encoder import build_encoder
from terrafm.train.collapse import FeatureSample
from terrafm.train.engine import Engine
from terrafm.train.phases import Phases, untimed
from terrafm.train.schedules import StepSettings


@dataclass
class Views:
    """Encoder input: the modalities each image's view has drawn.

    Attributes:
        pixels: modality -> (n_m, C_m, S, S) normalised float32.
        image: modality -> (n_m,) index of the image each belongs to.
        size: number of images.
        drop_path_key: (size,) keys of the drop-path masks, or None.
    """

    pixels: dict[str, Tensor]
    image: dict[str, Tensor]
    size: int
    drop_path_key: Tensor | None = None


class Network(nn.Module):
    """Encoder and projection head: the student, and by its moving average the teacher."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = build_encoder(
            config.model.name,
            drop_path=config.model.drop_path,
            num_queries=config.model.num_queries,
        )
        self.head = DINOHead(
            self.encoder.embed_dim,
            config.head.num_prototypes,
            hidden_dim=config.head.hidden_dim,
            bottleneck_dim=config.head.bottleneck_dim,
        )

    def forward(self, views: list[Views], freeze_prototypes: bool = False) -> tuple[Tensor, Tensor]:
        """All images, crop sizes one after another.

        Returns:
            Logits (sum of sizes, K) float32, and CLS tokens (sum of sizes, D).
        """
        features = self.embed(views)
        return self.head(features, freeze_prototypes=freeze_prototypes), features

    def embed(self, views: list[Views]) -> Tensor:
        """CLS tokens of all images, in the same order: (sum of sizes, D)."""
        return torch.cat(
            [self.encoder.forward_views(v.pixels, v.image, v.size, v.drop_path_key) for v in views]
        )


@dataclass
class StepStatistics:
    """Sums over one step's samples; divide by `samples` for means.

    Attributes:
        sums: (5,) float64: loss, teacher entropy, student entropy (nats), KoLeo, samples.
        losses: (B,) loss of each row, one tensor for each micro-batch; never summed over ranks.
        has_koleo: whether KoLeo is part of the objective.
    """

    sums: Tensor
    losses: list[Tensor] = field(default_factory=list)
    has_koleo: bool = False

    def means(self) -> dict[str, float]:
        """Means over the samples, KoLeo where it is on; empty where every sample was left out."""
        loss, teacher, student, koleo_term, samples = self.sums.tolist()
        if not samples:
            return {}
        return {
            "loss": loss / samples,
            "teacher_entropy": teacher / samples,
            "student_entropy": student / samples,
            **({"koleo": koleo_term / samples} if self.has_koleo else {}),
        }


@dataclass(frozen=True)
class _Prepared:
    """A micro-batch on the device, with normalised pixels of its crop sizes, global first."""

    batch: Batch
    crops: list[tuple[Crops, dict[str, Tensor]]]

    @property
    def weight(self) -> Tensor:
        return self.batch.sample_weight

    @property
    def rows(self) -> int:
        return len(self.weight)


class SelfDistillation:
    """One training step over an engine.

    Args:
        engine: holds the student.
        teacher: float32 copy of the student, never trained by gradients.
        criterion: loss and centers.
        statistics: modality -> (mean (C,), std (C,)) in physical units.
        global_batch: samples of one step over all ranks.
        precision: "float32" or "bf16", for the teacher's forward pass.
        device: where the step runs.
        koleo_weight: of KoLeo on the CLS tokens of the student's global crops, summed over the
            crops. A row's neighbour is sought in its own micro-batch and rank, as DINOv2 does.

    Attributes:
        teacher_features: the newest CLS tokens of the teacher, of each tile's first global crop.
    """

    def __init__(
        self,
        engine: Engine,
        teacher: Network,
        criterion: DINOLoss,
        *,
        statistics: Mapping[str, tuple[Tensor, Tensor]],
        global_batch: int,
        precision: str,
        device: torch.device,
        koleo_weight: float = 0.0,
    ) -> None:
        self.engine = engine
        self.teacher = teacher.eval().requires_grad_(False)
        self.criterion = criterion
        self._statistics = {m: (a.to(device), b.to(device)) for m, (a, b) in statistics.items()}
        self._global_batch = global_batch
        self._autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.bfloat16,
            "enabled": precision == "bf16",
        }
        self._device = device
        self._koleo_weight = koleo_weight
        self.teacher_features = FeatureSample()

    def forward_backward(
        self, batches: Iterable[HostBatch], settings: StepSettings, phases: Phases = untimed
    ) -> StepStatistics:
        """Adds up the gradients of this rank's micro-batches.

        A loss that is not finite makes the gradients NaN, so that `finish` leaves out the step on
        all ranks.

        Args:
            batches: the micro-batches.
            settings: of the step.
            phases: times the step's phases.

        Returns:
            This rank's sums and losses, still on the device.
        """
        sums = torch.zeros(5, dtype=torch.float64, device=self._device)
        losses = []
        taught: Iterable[tuple[HostBatch, Tensor | None]] = ((b, None) for b in batches)
        center = None
        if self.criterion.centering == "sinkhorn":
            # A target depends on the whole batch: the teacher sees all of it before the student
            # sees any. Crops are prepared twice, for keeping them takes more than the logits.
            batches = list(batches)
            logits, center = self._batch_center(batches, settings.teacher_temp, phases)
            taught = zip(batches, logits, strict=True)
        for host_batch, teacher_logits in taught:
            prepared = self._prepare(host_batch, phases)
            if teacher_logits is None:
                teacher_logits = self._teach(prepared, phases)
            terms, loss = self._learn(prepared, teacher_logits, center, settings, phases)
            sums += terms
            losses.append(loss)
        return StepStatistics(sums, losses, self._koleo_weight > 0)

    def finish(self, settings: StepSettings, phases: Phases = untimed) -> tuple[bool, float]:
        """Optimizer, teacher and centers; none of them where a loss or gradient is not finite.

        Returns:
            Whether the step was applied, and the gradient norm before clipping.
        """
        with phases("optimizer"):
            outcome = self.engine.step(settings)
        with phases("teacher"):
            if outcome.applied:
                self.engine.update_teacher(self.teacher, settings.teacher_momentum)
                self.criterion.update_centers()
            else:
                self.criterion.discard_pending()
        return outcome.applied, outcome.grad_norm

    def _batch_center(
        self, batches: list[HostBatch], teacher_temp: float, phases: Phases
    ) -> tuple[list[Tensor], Tensor]:
        """Teacher logits of this rank's micro-batches, and the center of the global batch."""
        logits, high_frequency, weights = [], [], []
        for batch in batches:
            prepared = self._prepare(batch, phases, global_crops_only=True)
            logits.append(self._teach(prepared, phases))
            high_frequency.append(prepared.batch.high_frequency)
            weights.append(prepared.weight)
        with phases("teacher"):
            center = self.criterion.batch_center(logits, teacher_temp, high_frequency, weights)
        return logits, center

    def _prepare(
        self, host_batch: HostBatch, phases: Phases, global_crops_only: bool = False
    ) -> _Prepared:
        with phases("prepare"):
            batch = host_batch.to(self._device)
            sizes = _crop_sizes(batch)[: 1 if global_crops_only else None]
            return _Prepared(batch, [(crops, self._normalise(crops)) for crops in sizes])

    def _teach(self, prepared: _Prepared, phases: Phases) -> Tensor:
        """The teacher's logits of the global crops, (G, B, K)."""
        with phases("teacher"), torch.no_grad(), torch.autocast(**self._autocast):
            crops, normalised = prepared.crops[0]
            assert crops.teacher is not None
            features = self.teacher.embed([_views(crops, normalised, crops.teacher)])
            self.teacher_features.add(features[: prepared.rows])
            return _per_view(self.teacher.head(features), prepared.rows)

    def _learn(
        self,
        prepared: _Prepared,
        teacher_logits: Tensor,
        center: Tensor | None,
        settings: StepSettings,
        phases: Phases,
    ) -> tuple[Tensor, Tensor]:
        """The micro-batch's part of `StepStatistics`: sums (5,) and losses (B,)."""
        batch, rows, weight = prepared.batch, prepared.rows, prepared.weight
        with phases("forward"):
            keys = batch.drop_path_key.flatten()
            student_views = []
            for crops, normalised in prepared.crops:
                views = _views(crops, normalised, crops.student)
                views.drop_path_key, keys = keys[: crops.size], keys[crops.size :]
                student_views.append(views)
            student_logits, features = self.engine.forward(
                student_views, freeze_prototypes=settings.freeze_prototypes
            )
            with torch.autocast(self._device.type, enabled=False):
                loss, teacher_entropy, student_entropy, q = self.criterion.per_sample(
                    _per_view(student_logits, rows), teacher_logits, settings.teacher_temp, center
                )
                objective, spread = loss, torch.zeros_like(loss)
                if self._koleo_weight:
                    global_crops = _per_view(features, rows)[: len(teacher_logits)]
                    spread = torch.stack([koleo_loss(crop, weight) for crop in global_crops]).sum(0)
                    objective = loss + self._koleo_weight * spread
                share = (objective * weight).sum() / self._global_batch
                # 1, or NaN: then every gradient is NaN, and the check of the gradients, which
                # all ranks share, is one of the losses too. No device is waited for.
                share = share * (1 + 0 * share.detach())
        with phases("backward"), torch.autocast(self._device.type, enabled=False):
            self.engine.backward(share)
        self.criterion.accumulate(teacher_logits, batch.high_frequency, weight, q)
        loss, one = loss.detach(), torch.ones_like(weight)
        terms = torch.stack([loss, teacher_entropy, student_entropy, spread.detach(), one])
        return (terms.double() * weight).sum(dim=1), loss

    def _normalise(self, crops: Crops) -> dict[str, Tensor]:
        return {
            modality: normalise(pixels, *self._statistics[modality], modality)
            for modality, pixels in crops.pixels.items()
        }


def build_student_and_teacher(config: Config) -> tuple[Network, Network]:
    """Student with seeded initial weights and a teacher equal to it.

    Both run as `train.activation_checkpointing` and `train.compile` say; neither changes what
    they compute or what their parameters are called.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        student = Network(config)
        teacher = Network(config)
    teacher.load_state_dict(student.state_dict())
    student.encoder.activation_checkpointing = config.train.activation_checkpointing == "blocks"
    if config.train.compile:
        student.encoder.compile_blocks()
        teacher.encoder.compile_blocks()
    return student, teacher


def build_criterion(config: Config, has_high_frequency: bool) -> DINOLoss:
    """The loss; alpha is 1 where no class is high-frequency."""
    return DINOLoss(
        num_prototypes=config.head.num_prototypes,
        student_temp=config.loss.student_temp,
        alpha=config.loss.alpha if has_high_frequency else 1.0,
        center_momentum=config.loss.center_momentum,
        high_frequency_momentum=config.loss.high_frequency_center_momentum,
        centering=config.loss.centering,
    )


def _per_view(logits: Tensor, rows: int) -> Tensor:
    """Logits (V * B, K), crop-major, as (V, B, K) float32."""
    return logits.float().reshape(-1, rows, logits.shape[-1])


def _crop_sizes(batch: Batch) -> list[Crops]:
    return [batch.global_crops] + ([batch.local_crops] if batch.local_crops else [])


def _views(crops: Crops, pixels: dict[str, Tensor], drawn: dict[str, Tensor]) -> Views:
    """Keeps the modalities that a network's views have drawn."""
    chosen = {
        m: mask.nonzero().squeeze(1).to(pixels[m].device, non_blocking=True)
        for m, mask in drawn.items()
    }
    return Views(
        pixels={m: pixels[m].index_select(0, rows) for m, rows in chosen.items()},
        image={m: crops.image[m].index_select(0, rows) for m, rows in chosen.items()},
        size=crops.size,
    )

"""Self-distillation of a student by the moving average of itself; knows no Ray, no DeepSpeed.

The order within a step is the paper's (arXiv 2506.06281): teacher forward, student forward, loss
with the old centers, backward over all micro-batches, finite check, clip, optimizer, EMA of
encoder and head, centers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from terrafm.config import Config
from terrafm.data.samples.batch import Batch, HostBatch
from terrafm.data.samples.masks import MaskedPatches, PatchMasking
from terrafm.losses import DINOLoss, koleo_loss
from terrafm.models.dino_head import DINOHead
from terrafm.models.packing import Packed
from terrafm.models.patch_embed import PATCH_SIZE
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


class Network(TrainedNetwork):
    """Encoder and projection head: the student, and by its moving average the teacher.

    Attributes:
        mask_token: (1, D) that stands for a masked patch in the student; None without
            `loss.masked_patch_weight`. Not the encoder's, whose weights are exported.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.head = DINOHead(
            self.encoder.embed_dim,
            config.head.num_prototypes,
            hidden_dim=config.head.hidden_dim,
            bottleneck_dim=config.head.bottleneck_dim,
        )
        # Zeros, as in iBOT, draw nothing: all other weights begin as they do without it.
        token = torch.zeros(1, self.encoder.embed_dim)
        self.mask_token = nn.Parameter(token) if config.loss.masked_patch_weight else None

    def forward(self, views: Packed, freeze_prototypes: bool = False) -> tuple[Tensor, Tensor]:
        """The student: all images of all crop sizes, masked where the views say so.

        Returns:
            Logits (images + masked, K) float32, and tokens (images + masked, D): the CLS tokens,
            then the patch tokens at masked positions.
        """
        features = self.encoder.forward_packed(views, self.mask_token)
        return self.head(features, freeze_prototypes=freeze_prototypes), features


class _Taught(NamedTuple):
    """Teacher logits of a micro-batch: (G, B, K), and (m, K) where patches are masked."""

    views: Tensor
    patches: Tensor | None


class _Centers(NamedTuple):
    """What Sinkhorn-Knopp subtracts from these, (K,) each; None leaves it to moving averages."""

    views: Tensor | None = None
    patches: Tensor | None = None


@dataclass(frozen=True)
class _Prepared:
    """A micro-batch on the device."""

    batch: Batch
    masked: MaskedPatches | None

    @property
    def weight(self) -> Tensor:
        return self.batch.samples.weight

    @property
    def rows(self) -> int:
        return len(self.weight)


class SelfDistillation(TrainingStep):
    """The teacher is the moving average of the student: see the module.

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
        masked_patch_weight: of the loss of masked patches, mean over a crop's masked patches and
            over the global crops, of which those without a mask count 0.
        masking: of the student's global crops; None where they are not masked. The network must
            have a mask token, and the criterion that loss, if and only if there is one.
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
        masked_patch_weight: float = 0.0,
        masking: PatchMasking | None = None,
    ) -> None:
        super().__init__(engine, teacher, precision=precision, device=device)
        self._network = teacher
        self.criterion = criterion
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        order = teacher.encoder.patch_embed.modalities
        self._packer = ViewPacker(statistics, order, device=device, dtype=dtype)
        self._global_batch = global_batch
        self._koleo_weight = koleo_weight
        self._masked_patch_weight = masked_patch_weight
        self._masking = masking
        self._teacher_prototypes: Tensor | None = None

    @override
    def forward_backward(
        self, batches: Iterable[HostBatch], settings: StepSettings, phases: Phases = untimed
    ) -> StepStatistics:
        """See `TrainingStep`."""
        sums = torch.zeros(6, dtype=torch.float64, device=self._device)
        losses = []
        self._teacher_prototypes = None
        work: Iterable[tuple[HostBatch, _Taught | None]] = ((b, None) for b in batches)
        centers = _Centers()
        if self.criterion.centering == "sinkhorn":
            # A target depends on the whole batch: the teacher sees all of it before the student
            # sees any. Crops are prepared twice, for keeping them takes more than the logits.
            batches = list(batches)
            logits, centers = self._batch_centers(batches, settings.teacher_temp, phases)
            work = zip(batches, logits, strict=True)
        for host_batch, taught in work:
            prepared = self._prepare(host_batch, phases)
            if taught is None:
                taught = self._teach(prepared, phases)
            terms, loss = self._learn(prepared, taught, centers, settings, phases)
            sums += terms
            losses.append(loss)
        koleo = "koleo" if self._koleo_weight else ""
        hidden = "masked_patch" if self._masking else ""
        names = ("loss", "teacher_entropy", "student_entropy", koleo, hidden)
        return StepStatistics(sums, names, losses)

    @override
    def finish(self, settings: StepSettings, phases: Phases = untimed) -> tuple[bool, float]:
        """Optimizer, teacher and centers; none of them where a loss or gradient is not finite.

        Returns:
            Whether the step was applied, and the gradient norm before clipping.
        """
        with phases("optimizer"):
            outcome = self.engine.step(settings)
        with phases("teacher"):
            self._teacher_prototypes = None
            if outcome.applied:
                self.engine.update_teacher(self.teacher, settings.teacher_momentum)
            for centers in filter(None, (self.criterion, self.criterion.masked_patch)):
                if outcome.applied:
                    centers.update_centers()
                else:
                    centers.discard_pending()
        return outcome.applied, outcome.grad_norm

    @override
    def centers(self) -> dict[str, Tensor]:
        """See `TrainingStep`."""
        return dict(self.criterion.state_dict())

    @override
    def figures(self) -> dict[str, float]:
        """Norms of the centers, and how many prototypes the teacher uses."""
        perplexity = self.criterion.use.perplexity()
        return {
            "center_norm": float(self.criterion.center.norm()),
            "center_high_frequency_norm": float(self.criterion.center_high_frequency.norm()),
            **({} if perplexity is None else {"prototype_perplexity": round(perplexity, 3)}),
        }

    def _batch_centers(
        self, batches: list[HostBatch], teacher_temp: float, phases: Phases
    ) -> tuple[list[_Taught], _Centers]:
        """Teacher logits of this rank's micro-batches, and the centers of the global batch."""
        logits, high_frequency, weights = [], [], []
        patches: list[Tensor] = []
        patch_weights: list[Tensor | None] = []
        for batch in batches:
            prepared = self._prepare(batch, phases)
            taught = self._teach(prepared, phases)
            logits.append(taught)
            high_frequency.append(prepared.batch.high_frequency)
            weights.append(prepared.weight)
            if prepared.masked is not None and taught.patches is not None:
                patches.append(taught.patches.unsqueeze(0))
                patch_weights.append(prepared.weight[prepared.masked.sample])
        with phases("teacher"):
            views = [taught.views for taught in logits]
            center = self.criterion.batch_center(views, teacher_temp, high_frequency, weights)
            patch_center = None
            if self.criterion.masked_patch is not None:
                patch_center = self.criterion.masked_patch.batch_center(
                    patches, teacher_temp, [None] * len(patches), patch_weights
                )
        return logits, _Centers(center, patch_center)

    def _prepare(self, host_batch: HostBatch, phases: Phases) -> _Prepared:
        with phases("prepare"):
            batch = host_batch.to(self._device)
            return _Prepared(batch, self._mask(batch))

    def _mask(self, batch: Batch) -> MaskedPatches | None:
        if self._masking is None:
            return None
        crops = batch.global_crops
        side = next(iter(crops.pixels.values())).shape[-1] // PATCH_SIZE
        samples = batch.samples
        count = crops.size // len(samples)
        masks = self._masking.draw(samples.epoch, samples.position, count, side)
        return MaskedPatches.of(masks, self._device)

    def _teach(self, prepared: _Prepared, phases: Phases) -> _Taught:
        """The teacher's logits of the global crops, and of the patches masked for the student."""
        crops, rows, masked = prepared.batch.global_crops, prepared.rows, prepared.masked
        assert crops.teacher is not None
        with phases("prepare"):
            views = self._packer.pack([crops], [crops.teacher])
            views.masked = None if masked is None else masked.position
        with phases("teacher"), torch.no_grad(), torch.autocast(**self._autocast):
            features = self.teacher.encoder.forward_packed(views)
            self.teacher_features.add(features[:rows])
            if self._teacher_prototypes is None:
                # The same for all micro-batches of a step.
                self._teacher_prototypes = self._network.head.last_layer.directions()
            logits = self._network.head(features, directions=self._teacher_prototypes)
            if masked is None:
                return _Taught(_per_view(logits, rows), None)
            return _Taught(_per_view(logits[: crops.size], rows), logits[crops.size :])

    def _learn(
        self,
        prepared: _Prepared,
        taught: _Taught,
        centers: _Centers,
        settings: StepSettings,
        phases: Phases,
    ) -> tuple[Tensor, Tensor]:
        """The micro-batch's part of `StepStatistics`: sums (6,) and losses (B,)."""
        batch, rows, weight = prepared.batch, prepared.rows, prepared.weight
        masked, images = prepared.masked, batch.drop_path_key.numel()
        with phases("prepare"):
            crops = [c for c in (batch.global_crops, batch.local_crops) if c is not None]
            views = self._packer.pack(crops, [c.student for c in crops])
            views.drop_path_key = batch.drop_path_key.flatten()
            views.masked = None if masked is None else masked.position
        with phases("forward"):
            student_logits, features = self.engine.forward(
                views, freeze_prototypes=settings.freeze_prototypes
            )
            with torch.autocast(self._device.type, enabled=False):
                spread = guess = torch.zeros_like(weight)
                if masked is not None:
                    # Slices: of views that one call gives together none may be written to.
                    guesses, student_logits = student_logits[images:], student_logits[:images]
                    guess = self._guess(guesses, masked, taught, centers, settings.teacher_temp)
                loss, teacher_entropy, student_entropy, q = self.criterion.per_sample(
                    _per_view(student_logits, rows),
                    taught.views,
                    settings.teacher_temp,
                    centers.views,
                    overwrite=True,
                )
                objective = loss
                if self._koleo_weight:
                    global_crops = _per_view(features[:images], rows)[: len(taught.views)]
                    spread = torch.stack([koleo_loss(crop, weight) for crop in global_crops]).sum(0)
                    objective = objective + self._koleo_weight * spread
                if masked is not None:
                    objective = objective + self._masked_patch_weight * guess
                share = finite_share(objective, weight, self._global_batch)
        with phases("backward"), torch.autocast(self._device.type, enabled=False):
            self.engine.backward(share)
        self.criterion.accumulate(taught.views, batch.high_frequency, weight, q)
        if self.criterion.masked_patch is not None and masked is not None:
            assert taught.patches is not None
            patch_weight = weight[masked.sample]
            self.criterion.masked_patch.accumulate(taught.patches[None], None, patch_weight)
        loss, one = loss.detach(), torch.ones_like(weight)
        beyond = spread.detach(), guess.detach()
        terms = torch.stack([loss, teacher_entropy, student_entropy, *beyond, one])
        return (terms.double() * weight).sum(dim=1), loss

    def _guess(
        self,
        student_logits: Tensor,
        masked: MaskedPatches,
        taught: _Taught,
        centers: _Centers,
        teacher_temp: float,
    ) -> Tensor:
        """Each sample's loss of its masked patches, (B,)."""
        assert self.criterion.masked_patch is not None
        assert taught.patches is not None
        losses: Tensor = self.criterion.masked_patch(
            student_logits, taught.patches, teacher_temp, centers.patches
        )
        nothing = losses.new_zeros(taught.views.shape[1])
        return nothing.index_add(0, masked.sample, masked.share * losses)


def build_student_and_teacher(config: Config) -> tuple[Network, Network]:
    """Student with seeded initial weights and a teacher equal to it; see `build_pair`."""
    return build_pair(config, lambda: Network(config))


def build_criterion(config: Config, has_high_frequency: bool) -> DINOLoss:
    """The loss; alpha is 1 where no class is high-frequency."""
    return DINOLoss(
        num_prototypes=config.head.num_prototypes,
        student_temp=config.loss.student_temp,
        alpha=config.loss.alpha if has_high_frequency else 1.0,
        center_momentum=config.loss.center_momentum,
        centering=config.loss.centering,
        masked_patch=config.loss.masked_patch_weight > 0,
    )


def _per_view(logits: Tensor, rows: int) -> Tensor:
    """Logits (V * B, K), crop-major, as (V, B, K) float32."""
    return logits.float().reshape(-1, rows, logits.shape[-1])

"""What trains an encoder in one plain process: our step, or a peer's on the same crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafm.data.samples.batch import Crops, HostBatch, normalise
from terrafm.models.encoder import Encoder
from terrafm.train.step.distillation import build_student_and_teacher
from terrafm.train.step.engine import PlainEngine
from terrafm.train.step.schedules import StepSettings
from terrafm.train.worker.setup import TrainingSetup

# Of NT-Xent, and the length of the vectors that it compares: SimCLR's (arXiv 2002.05709).
_TEMPERATURE = 0.1
_PROJECTION = 128


class Objective(Protocol):
    """A way to train.

    Attributes:
        encoder: what a user would keep; it changes with every step.
    """

    encoder: Encoder

    def step(self, batches: Sequence[HostBatch], settings: StepSettings) -> dict[str, float]:
        """One optimizer step over the micro-batches; returns what it says of itself.

        Raises:
            SystemExit: it was not finite.
        """
        ...


class Distillation:
    """Ours."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._distillation = setup.plain_distillation()
        self.encoder = self._distillation.teacher.encoder

    def step(self, batches: Sequence[HostBatch], settings: StepSettings) -> dict[str, float]:
        """See `Objective`."""
        statistics = self._distillation.forward_backward(batches, settings)
        applied, norm = self._distillation.finish(settings)
        if not applied:
            raise SystemExit("a step was not finite")
        rank = self._distillation.teacher_features.effective_rank()
        return statistics.means() | {"grad_norm": norm, "effective_rank": rank or 0.0}


class Contrastive:
    """NT-Xent between the two global crops of a sample (SimCLR), the rest of the batch against."""

    def __init__(self, setup: TrainingSetup) -> None:
        config = setup.config
        network, _ = build_student_and_teacher(config)
        width = config.head.hidden_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            projector = nn.Sequential(
                nn.Linear(network.encoder.embed_dim, width),
                nn.GELU(),
                nn.Linear(width, _PROJECTION),
            )
        self.encoder = network.encoder
        self._student = nn.ModuleDict({"encoder": network.encoder, "projector": projector})
        self._statistics = setup.statistics
        self._engine = PlainEngine(
            self._student, config.optim, precision="float32", device=torch.device("cpu")
        )

    def step(self, batches: Sequence[HostBatch], settings: StepSettings) -> dict[str, float]:
        """See `Objective`."""
        (host_batch,) = batches
        batch = host_batch.to("cpu")
        features = self.encoder.forward_views(*_student_views(batch.global_crops, self._statistics))
        loss = nt_xent(self._student["projector"](features))
        self._engine.backward(loss)
        outcome = self._engine.step(settings)
        if not outcome.applied:
            raise SystemExit("a step was not finite")
        return {"loss": float(loss.detach()), "grad_norm": outcome.grad_norm}


def nt_xent(features: Tensor) -> Tensor:
    """NT-Xent of two views each of B samples, (2 B, D) view-major (SimCLR, equation 1)."""
    rows = functional.normalize(features, dim=1)
    similarity = rows @ rows.T / _TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(rows)).roll(len(rows) // 2)
    return functional.cross_entropy(similarity, partner)


class LightlyDino:
    """lightly's DINO around our encoder, our optimizer and our schedules; one sensor."""

    def __init__(self, setup: TrainingSetup) -> None:
        # Of an environment of its own.
        from lightly.loss import DINOLoss

        from harness.step_lightly import Dino

        config = setup.config
        (self._modality,) = config.data.modalities
        network, _ = build_student_and_teacher(config)
        self._model = Dino(network, self._modality)
        self._n_global = config.data.global_crops
        self._statistics = setup.statistics
        self._criterion = DINOLoss(
            config.head.num_prototypes,
            student_temp=config.loss.student_temp,
            center_momentum=config.loss.center_momentum,
        )
        self._engine = PlainEngine(
            _Trained(self._model), config.optim, precision="float32", device=torch.device("cpu")
        )
        self.encoder = self._model.teacher_backbone.eval()

    def step(self, batches: Sequence[HostBatch], settings: StepSettings) -> dict[str, float]:
        """See `Objective`."""
        from harness.step_lightly import update_teacher

        (host_batch,) = batches
        views = list(_pixels(host_batch, self._modality, self._statistics))
        with torch.no_grad():
            taught = [self._model.forward_teacher(view) for view in views[: self._n_global]]
        learned = [self._model(view) for view in views]
        loss = self._criterion(taught, learned, teacher_temp=settings.teacher_temp)
        self._engine.backward(loss)
        outcome = self._engine.step(settings)
        if not outcome.applied:
            raise SystemExit("a step was not finite")
        update_teacher(self._model, settings.teacher_momentum)
        return {"loss": float(loss.detach()), "grad_norm": outcome.grad_norm}


class _Trained(nn.Module):
    """The part of a model that an optimizer gets: fusion has no gradient from one sensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.student_backbone, model.student_head


OBJECTIVES = {"distillation": Distillation, "contrastive": Contrastive, "lightly": LightlyDino}


def _student_views(
    crops: Crops, statistics: dict[str, tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Arguments of `Encoder.forward_views`: the sensors that the student's views have drawn."""
    pixels, image = {}, {}
    for modality, mask in crops.student.items():
        pixels[modality] = normalise(crops.pixels[modality], *statistics[modality], modality)[mask]
        image[modality] = crops.image[modality][mask]
    return pixels, image, crops.size


def _pixels(
    host_batch: HostBatch, modality: str, statistics: dict[str, tuple[Tensor, Tensor]]
) -> Iterator[Tensor]:
    """(B, C, S, S) of every view, the global ones first."""
    batch = host_batch.to("cpu")
    for crops in filter(None, (batch.global_crops, batch.local_crops)):
        shown = normalise(crops.pixels[modality], *statistics[modality], modality)
        yield from shown.split(len(batch.samples))

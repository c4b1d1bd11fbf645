"""Fine-tuning for masks: UPerNet on four blocks of the encoder."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm.eval.datasets.labelled import SegmentationSet
from terrafm.eval.features.encoders import InputOptions, Row
from terrafm.eval.finetune.models import Segmenter
from terrafm.eval.finetune.pixels import Pixels, turned
from terrafm.eval.finetune.training import Tell, fine_tune
from terrafm.eval.segmentation.patch_maps import lacks_modality
from terrafm.eval.segmentation.task import LogitsOf, MaskTask


@dataclass(frozen=True)
class _Masks:
    """Masks as an objective of fine-tuning.

    Attributes:
        row: of the table, with its encoder.
        images: the set.
        pixels: its images.
        inputs: which modalities every image has to have.
        task: masks.
    """

    row: Row
    images: SegmentationSet
    pixels: Pixels
    inputs: InputOptions
    task: MaskTask

    def build(self) -> nn.Module:
        encoder = copy.deepcopy(self.row.encoder)
        assert encoder is not None
        return Segmenter(encoder.requires_grad_(), self.task.classes).to(self.task.device)

    def loss(
        self, model: nn.Module, rows: NDArray[np.int64], symmetries: Sequence[int]
    ) -> Tensor | None:
        height, width = self.task.shape
        if height != width:
            # A quarter turn would give the mask another shape: half turns only.
            symmetries = [symmetry - symmetry % 2 for symmetry in symmetries]
        target = torch.stack(
            [
                turned(mask, int(symmetry))
                for mask, symmetry in zip(self.task.target(rows), symmetries, strict=True)
            ]
        )
        if not self.task.counted(target):
            return None
        logits = model(self._pixels(rows, symmetries), self.task.shape)
        return self.task.loss(logits, target)

    def validate(self, model: nn.Module, rows: NDArray[np.int64]) -> tuple[float, float]:
        return self.task.validate(self.logits_of(model), rows)

    def logits_of(self, model: nn.Module) -> LogitsOf:
        """What predicts rows of the set."""

        def predict(rows: NDArray[np.int64], shape: tuple[int, int]) -> Tensor:
            logits: Tensor = model(self._pixels(rows), shape)
            return logits

        return predict

    def _pixels(
        self, rows: NDArray[np.int64], symmetries: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Images that have all modalities: maps of several kinds are not mixed."""
        pixels, places = self.pixels.batch(rows, symmetries)
        for modality in self.inputs.modalities:
            held = places[modality].tolist() if modality in places else []
            if len(held) < len(rows):
                (first, *_) = sorted(set(range(len(rows))) - set(held))
                raise lacks_modality(self.images, int(rows[first]))
        return pixels


def finetune_masks(
    row: Row,
    images: SegmentationSet,
    task: MaskTask,
    inputs: InputOptions,
    epochs: int,
    tell: Tell = lambda _: None,
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Fine-tunes an encoder with UPerNet on the training split.

    Args:
        row: of the table, with an encoder, which stays as it is.
        images: the set.
        task: masks, splits, seed.
        inputs: how images are given to the encoder.
        epochs: at most.
        tell: receives the progress.

    Returns:
        (M, C, C) confusion of each test image, and what was chosen, JSON-able.

    Raises:
        UsageError: images that lack a modality of the others, or no pixel to validate on.
    """
    assert row.normalisation is not None
    pixels = Pixels(images, inputs, row.normalisation)
    objective = _Masks(row, images, pixels, inputs, task)
    tuned = fine_tune(
        objective, task.splits["train"], task.splits["valid"], epochs=epochs, seed=task.seed,
        tell=tell,
    )  # fmt: skip
    confusions, _ = task.evaluate(objective.logits_of(tuned.model), task.splits["test"])
    details = {"learning_rate": tuned.learning_rate, "epoch": tuned.epoch, "epochs": epochs}
    return confusions, details

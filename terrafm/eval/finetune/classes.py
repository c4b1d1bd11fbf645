"""Fine-tuning for classes: a linear layer on the CLS token."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.nn import functional

from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.encoders import InputOptions, Row
from terrafm.eval.finetune.models import Classifier
from terrafm.eval.finetune.pixels import Pixels
from terrafm.eval.finetune.training import BATCH, Tell, fine_tune, prefixed
from terrafm.eval.probes.linear import mean_precision
from terrafm.eval.probes.protocols import Outcome, Task, folds


@dataclass(frozen=True)
class _Classes:
    """Classes as an objective of fine-tuning.

    Attributes:
        row: of the table, with its encoder.
        pixels: of the set.
        images: (N,) rows of the set that the task's rows are.
        task: labels.
        device: where to compute.
    """

    row: Row
    pixels: Pixels
    images: NDArray[np.int64]
    task: Task
    device: torch.device

    def build(self) -> nn.Module:
        encoder = copy.deepcopy(self.row.encoder)
        assert encoder is not None
        return Classifier(encoder.requires_grad_(), self.task.classes).to(self.device)

    def loss(self, model: nn.Module, rows: NDArray[np.int64], symmetries: Sequence[int]) -> Tensor:
        pixels, places = self.pixels.batch(self.images[rows], symmetries)
        return _cross_entropy(model(pixels, places), self._target(rows))

    def validate(self, model: nn.Module, rows: NDArray[np.int64]) -> tuple[float, float]:
        logits, labels = self.logits(model, rows), self.task.labels[rows]
        loss = float(_cross_entropy(logits, self._target(rows)))
        if labels.ndim == 1:
            return float(accuracy_score(labels, logits.argmax(-1).cpu().numpy())), -loss
        return mean_precision(logits.double().sigmoid().cpu().numpy(), labels), -loss

    @torch.inference_mode()
    def logits(self, model: nn.Module, rows: NDArray[np.int64]) -> Tensor:
        """(M, C) of some rows."""
        found = [
            model(*self.pixels.batch(self.images[rows[start : start + BATCH]]))
            for start in range(0, len(rows), BATCH)
        ]
        return torch.cat(found).float()

    def predict(self, model: nn.Module, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(M,) classes, or (M, C) probabilities."""
        logits = self.logits(model, rows)
        if self.task.labels.ndim == 1:
            return np.asarray(logits.argmax(-1).cpu().numpy(), np.int64)
        return np.asarray(logits.double().sigmoid().cpu().numpy(), np.float64)

    def _target(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.task.labels[rows]).to(self.device)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images; of several labels the sum over classes."""
    if target.ndim == 1:
        return functional.cross_entropy(logits, target)
    losses = functional.binary_cross_entropy_with_logits(
        logits, target.to(logits), reduction="none"
    )
    return losses.sum(-1).mean()


def finetune_classes(
    row: Row,
    images: ImageSet,
    rows: NDArray[np.int64],
    task: Task,
    inputs: InputOptions,
    epochs: int,
    tell: Tell = lambda _: None,
) -> Outcome:
    """Fine-tunes an encoder on the training split, or on each fold of a set without splits.

    Args:
        row: of the table, with an encoder, which stays as it is.
        images: the set.
        rows: (N,) its rows that the task's rows are.
        task: labels, splits, seed.
        inputs: how images are given to the encoder.
        epochs: at most.
        tell: receives the progress.

    Raises:
        UsageError: a split without images, or too few places for folds.
    """
    assert row.normalisation is not None
    objective = _Classes(row, Pixels(images, inputs, row.normalisation), rows, task, inputs.device)
    if task.splits is not None:
        parts = [(task.rows("train"), task.rows("valid"), task.rows("test"))]
    else:
        parts = list(folds(task))
    scored = np.concatenate([test for _, _, test in parts])
    predictions, details = [], []
    for number, (train, valid, test) in enumerate(parts, 1):
        fold = f"fold {number} of {len(parts)}, " if len(parts) > 1 else ""
        tuned = fine_tune(
            objective, train, valid, epochs=epochs, seed=task.seed,
            tell=prefixed(tell, fold),
        )  # fmt: skip
        predictions.append(objective.predict(tuned.model, test))
        details.append((tuned.learning_rate, tuned.epoch))
    order = np.argsort(scored)
    return Outcome(
        scored[order],
        np.concatenate(predictions)[order],
        {
            "learning_rate": [learning_rate for learning_rate, _ in details],
            "epoch": [epoch for _, epoch in details],
            "epochs": epochs,
        },
    )

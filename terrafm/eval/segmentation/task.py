"""Masks as a task: which pixels teach, which are scored, and how a prediction is scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import SPLITS, SegmentationSet
from terrafm.eval.metrics import confusion, segmentation_scores

# What torch ignores where a set has no nodata.
_NOTHING = -100
# Images that are predicted at once.
_BATCH = 16

# Rows (B,) and the masks' shape to logits (B, C, H, W).
LogitsOf = Callable[[NDArray[np.int64], tuple[int, int]], Tensor]


@dataclass(frozen=True)
class MaskTask:
    """Masks and who may learn from whom.

    Attributes:
        masks: of each image (H, W) int64, all of one shape.
        splits: "train", "valid" and "test" -> rows.
        classes: number of classes C.
        ignore: label of pixels that do not count, or None.
        device: where to compute.
        seed: of the order of batches, of augmentation and of decoders.
    """

    masks: Sequence[Tensor]
    splits: Mapping[str, NDArray[np.int64]]
    classes: int
    ignore: int | None
    device: torch.device
    seed: int = 0

    @classmethod
    def of(cls, images: SegmentationSet, device: torch.device, seed: int) -> "MaskTask":
        """Reads and checks the masks of a set.

        Raises:
            UsageError: no splits or an empty one, masks of several shapes, or labels that are no
                class.
        """
        splits = {name: _rows(images, name) for name in SPLITS}
        masks = [torch.from_numpy(images.mask(row)) for row in range(len(images.names))]
        _check_masks(images, masks)
        return cls(masks, splits, len(images.classes), images.ignore, device, seed)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the masks, pixels."""
        return self.masks[0].shape[0], self.masks[0].shape[1]

    def target(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, H, W) masks on the device."""
        return torch.stack([self.masks[row] for row in rows.tolist()]).to(self.device)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that count; not a number where none does.

        Args:
            logits: (B, C, H, W).
            target: (B, H, W).
        """
        nothing = _NOTHING if self.ignore is None else self.ignore
        return functional.cross_entropy(logits, target, ignore_index=nothing)

    def counted(self, target: Tensor) -> int:
        """How many pixels of a target count."""
        return target.numel() if self.ignore is None else int((target != self.ignore).sum())

    @torch.inference_mode()
    def evaluate(
        self, logits_of: LogitsOf, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], float]:
        """Scores predictions.

        Args:
            logits_of: predicts some rows.
            rows: (M,) which images.

        Returns:
            (M, C, C) confusion of each image, and the mean loss of all pixels that count.
        """
        found, total, counted = [], 0.0, 0
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            logits, target = logits_of(batch, self.shape), self.target(batch)
            if count := self.counted(target):
                total += count * float(self.loss(logits, target))
                counted += count
            found += [
                confusion(predicted, mask, self.classes, self.ignore)
                for predicted, mask in zip(logits.argmax(1), target, strict=True)
            ]
        return np.stack(found), total / max(counted, 1)

    def validate(self, logits_of: LogitsOf, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Mean IoU of some rows and, for those that are equal, minus their loss.

        Raises:
            UsageError: none of their pixels counts.
        """
        confusions, loss = self.evaluate(logits_of, rows)
        if not confusions.any():
            raise UsageError("no pixel of the set's valid split counts")
        images = np.arange(len(confusions))
        scores = segmentation_scores(confusions, images, ignore=self.ignore, resamples=1)
        return scores["miou"].value, -loss


def _rows(images: SegmentationSet, split: str) -> NDArray[np.int64]:
    if images.splits is None:
        raise UsageError(f"{images.uri} has no splits: what learns from masks needs them")
    found = np.flatnonzero(images.splits == split)
    if not len(found):
        raise UsageError(f"{images.uri} has no images in its {split} split")
    return found


def _check_masks(images: SegmentationSet, masks: Sequence[Tensor]) -> None:
    for name, mask in zip(images.names, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise UsageError(
                f"mask of {name} in {images.uri} is {tuple(mask.shape)}, the first is "
                f"{tuple(masks[0].shape)}"
            )
        wrong = (mask < 0) | (mask >= len(images.classes))
        if images.ignore is not None:
            wrong &= mask != images.ignore
        if bool(wrong.any()):
            raise UsageError(
                f"mask of {name} in {images.uri} holds {int(mask[wrong][0])}, its classes are 0 "
                f"to {len(images.classes) - 1}"
            )

"""The linear probe on patches: one linear layer on the last block's patch map, upsampled.

As GEO-Bench's and DINO's linear segmentation: standardised patch features, a 1 x 1 convolution
to the classes, bilinear upsampling to the mask, cross-entropy of the pixels that count. AdamW
over a small sweep of learning rates, chosen by mIoU on the validation split. The baseline without
a model takes the mean spectrum of each patch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.feature_cache import cached_features
from terrafm.eval.features import batches
from terrafm.eval.labelled import SPLITS, SegmentationSet
from terrafm.eval.metrics import as_dicts, confusion, segmentation_scores
from terrafm.eval.rows import Look, Row
from terrafm.eval.table import CompareOptions, provenance, table_rows
from terrafm.models.patch_embed import PATCH_SIZE

LEARNING_RATES = (1e-3, 1e-2, 1e-1)
EPOCHS = 50
WEIGHT_DECAY = 1e-4
_BATCH = 16


@dataclass(frozen=True)
class PatchProbe:
    """A fitted linear layer on patch features.

    Attributes:
        mean: (D, 1, 1) of the features it was fitted on.
        scale: (D, 1, 1) their standard deviations.
        layer: 1 x 1 convolution from D to the classes.
        learning_rate: what it was fitted with.
    """

    mean: Tensor
    scale: Tensor
    layer: nn.Conv2d
    learning_rate: float

    def logits(self, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, D, h, w) patch features to (B, C, H, W) logits."""
        low: Tensor = self.layer((maps - self.mean) / self.scale)
        return functional.interpolate(low, size=shape, mode="bilinear", align_corners=False)


def compare_masks(
    images: SegmentationSet,
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str],
    options: CompareOptions,
) -> dict[str, Any]:
    """Scores encoders on a set with masks.

    Args:
        images: the set, with splits.
        weights: URIs of exported or released TerraFM weights.
        baselines: other encoders; none is known that gives patch maps.
        options: how; the only protocol is "linear".

    Returns:
        As `terrafm.eval.compare.compare`.

    Raises:
        UsageError: no splits, or an encoder that does not fit.
    """
    if baselines:
        raise UsageError(f"baseline {baselines[0]}: masks are scored for TerraFM weights only")
    if "linear" not in options.protocols:
        raise UsageError(f"{images.uri} has masks: its protocol is linear")
    notes: list[str] = []
    look = options.look(images)
    splits = {name: _rows(images, name) for name in SPLITS}
    masks = [torch.from_numpy(images.mask(row)) for row in range(len(images.names))]
    _check_masks(images, masks)
    rows = table_rows(images, look, weights, (), notes)
    side = look.size // PATCH_SIZE
    shown = []
    for row in rows:
        depends_on = {**row.depends_on, "dense": True, "size": look.size}
        flat, kept = cached_features(
            options.features, f"dense {row.title}", depends_on, images,
            partial(_patch_maps, row, images, look),
        )  # fmt: skip
        maps = torch.from_numpy(flat.reshape(len(flat), -1, side, side))
        probe = fit_best(maps, masks, splits["train"], splits["valid"], images, look, options.seed)
        confusions = confusions_of(probe, maps, masks, splits["test"], images, look.device)
        scores = segmentation_scores(
            confusions, images.groups[splits["test"]], ignore=images.ignore,
            resamples=options.resamples, seed=options.seed,
        )  # fmt: skip
        scored = {"scores": as_dicts(scores), "learning_rate": probe.learning_rate}
        shown.append({"title": row.title, "seen": row.seen, "features": kept,
                      "protocols": {"linear": scored}})  # fmt: skip
    counts = ", ".join(f"{name} {len(found)}" for name, found in splits.items())
    if images.ignore is not None:
        notes.append(f"pixels of label {images.ignore} do not count")
    return {
        **provenance(images, look, options),
        "task": "segmentation",
        "n": len(splits["test"]),
        "split": f"the set's splits ({counts}), scored on test",
        "rows": shown,
        "notes": list(dict.fromkeys(notes)),
    }


def fit_best(
    maps: Tensor,
    masks: Sequence[Tensor],
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    images: SegmentationSet,
    look: Look,
    seed: int,
) -> PatchProbe:
    """Fits with each learning rate; the one with the best validation mIoU, the lower of equals.

    Args:
        maps: (N, D, h, w) patch features.
        masks: N of (H, W) classes.
        train: rows to fit on.
        valid: rows to choose by.
        images: the set: its classes and what does not count.
        look: on which device.
        seed: of the order of batches.
    """
    best: PatchProbe | None = None
    best_score = -np.inf
    for learning_rate in LEARNING_RATES:
        probe = _fit(maps, masks, train, images, look.device, learning_rate, seed)
        found = confusions_of(probe, maps, masks, valid, images, look.device)
        score = segmentation_scores(
            found, np.arange(len(found)), ignore=images.ignore, resamples=1
        )["miou"].value
        if score > best_score:
            best, best_score = probe, score
    if best is None:
        raise UsageError(f"{images.uri}: no pixel of its valid split counts")
    return best


@torch.inference_mode()
def confusions_of(
    probe: PatchProbe,
    maps: Tensor,
    masks: Sequence[Tensor],
    rows: NDArray[np.int64],
    images: SegmentationSet,
    device: torch.device,
) -> NDArray[np.int64]:
    """(M, C, C) confusion of each of the rows."""
    found = []
    for row in rows.tolist():
        mask = masks[row].to(device)
        logits = probe.logits(maps[row : row + 1].to(device), (mask.shape[0], mask.shape[1]))
        found.append(confusion(logits.argmax(1)[0], mask, len(images.classes), images.ignore))
    return np.stack(found)


def _fit(
    maps: Tensor,
    masks: Sequence[Tensor],
    train: NDArray[np.int64],
    images: SegmentationSet,
    device: torch.device,
    learning_rate: float,
    seed: int,
) -> PatchProbe:
    seen = maps[torch.from_numpy(train)]
    mean = seen.mean((0, 2, 3))[:, None, None].to(device)
    spread = seen.std((0, 2, 3), correction=0)[:, None, None].to(device)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    layer = nn.Conv2d(maps.shape[1], len(images.classes), 1).to(device)
    # The loss is convex: any start will do, and this one needs no seed.
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    probe = PatchProbe(mean, scale, layer, learning_rate)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(train) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = np.random.default_rng(seed)
    nothing = -100 if images.ignore is None else images.ignore
    for _ in range(EPOCHS):
        order = generator.permutation(train)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            target = torch.stack([masks[row] for row in rows.tolist()]).to(device)
            if bool((target == nothing).all()):
                schedule.step()
                continue
            inputs = maps[torch.from_numpy(rows)].to(device)
            logits = probe.logits(inputs, (target.shape[1], target.shape[2]))
            loss = functional.cross_entropy(logits, target, ignore_index=nothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return probe


@torch.inference_mode()
def _patch_maps(row: Row, images: SegmentationSet, look: Look) -> NDArray[np.float32]:
    """(N, D * h * w): the encoder's patch map, or the mean spectrum of each patch."""
    statistics = row.normalisation
    if statistics is None:
        measured = images.statistics()
        statistics = {modality: measured[modality] for modality in look.modalities}
    encoder = None if row.encoder is None else row.encoder.to(look.device)
    maps: NDArray[np.float32] | None = None
    for rows, pixels in batches(images, look.modalities, statistics, look.size, look.batch):
        moved = {name: tensor.to(look.device) for name, tensor in pixels.items()}
        if set(moved) != set(look.modalities):
            raise UsageError(f"image {images.names[rows[0]]} lacks a modality of the others")
        if encoder is None:
            stacked = torch.cat([moved[name] for name in look.modalities], 1)
            found = functional.avg_pool2d(stacked, PATCH_SIZE)
        else:
            (found,) = encoder.forward_features(moved)
        if maps is None:
            maps = np.zeros((len(images.names), found[0].numel()), np.float32)
        maps[rows] = found.float().flatten(1).cpu().numpy()
    assert maps is not None
    return maps


def _rows(images: SegmentationSet, split: str) -> NDArray[np.int64]:
    if images.splits is None:
        raise UsageError(f"{images.uri} has no splits: the probe of masks needs them")
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

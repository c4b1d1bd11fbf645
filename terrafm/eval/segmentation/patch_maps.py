"""Patch maps of frozen encoders: what the probes of masks learn from."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import SegmentationSet
from terrafm.eval.features.encoders import InputOptions, Row
from terrafm.eval.features.extraction import batches
from terrafm.models.patch_embed import PATCH_SIZE

# Of twelve blocks those that a pyramid is made of, counted from 1 (BEiT, MAE, mmsegmentation).
_PYRAMID = (4, 6, 8, 12)


def pyramid_blocks(depth: int) -> tuple[int, ...]:
    """The four blocks, counted from 0, whose maps become a pyramid, fine to coarse.

    3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24; in the same proportions elsewhere.
    """
    return tuple(max(1, round(depth * block / _PYRAMID[-1])) - 1 for block in _PYRAMID)


@torch.inference_mode()
def patch_maps(
    row: Row, images: SegmentationSet, inputs: InputOptions, levels: int = 1
) -> NDArray[np.float32]:
    """The encoder's patch maps, or the mean spectrum of each patch.

    Args:
        row: of the table; one without an encoder has the spectrum on every level.
        images: the set.
        inputs: how images are given to the encoder.
        levels: L, 1 for the last block, 4 for those of `pyramid_blocks`.

    Returns:
        (N, L * D * h * w) with h = w = size / 16.

    Raises:
        UsageError: images that lack a modality of the others.
    """
    statistics = row.normalisation
    if statistics is None:
        measured = images.statistics()
        statistics = {modality: measured[modality] for modality in inputs.modalities}
    encoder = None if row.encoder is None else row.encoder.to(inputs.device).eval()
    blocks: Sequence[int] | None = None
    if encoder is not None and levels > 1:
        blocks = pyramid_blocks(len(encoder.blocks))
    maps: NDArray[np.float32] | None = None
    for rows, pixels in batches(images, inputs.modalities, statistics, inputs.size, inputs.batch):
        moved = {name: tensor.to(inputs.device) for name, tensor in pixels.items()}
        if set(moved) != set(inputs.modalities):
            raise lacks_modality(images, rows[0])
        if encoder is None:
            stacked = torch.cat([moved[name] for name in inputs.modalities], 1)
            found = [functional.avg_pool2d(stacked, PATCH_SIZE)] * levels
        else:
            found = encoder.forward_features(moved, out_indices=blocks)
        flat = torch.stack(found, 1).float().flatten(1).cpu().numpy()
        if maps is None:
            maps = np.zeros((len(images.names), flat.shape[1]), np.float32)
        maps[rows] = flat
    assert maps is not None
    return maps


def lacks_modality(images: SegmentationSet, row: int) -> UsageError:
    """What an image without a modality of the others is refused with."""
    return UsageError(f"image {images.names[row]} lacks a modality of the others")

"""Two overlapping cuts of every tile, by encoders and by their plain statistics.

An untrained network finds a place again by exact position alone. So the two sides are cut from
different parts: the upper left two thirds of a tile and the lower right two thirds, which share
a third of its side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.extraction import Normalisation, batches
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import Encoder

_LEAST_DEVIATION = 1e-6
CUTS = 2


@dataclass(frozen=True)
class SensorViews:
    """What is known of the two cuts of all tiles, by one sensor.

    Attributes:
        features: per encoder (2, N, D) float32, upper left cut first.
        means: (2, N, C) of each band, normalised; 0 for a tile without the sensor.
        deviations: (2, N, C) logarithm of each band's standard deviation.
    """

    features: list[NDArray[np.float32]]
    means: NDArray[np.float32]
    deviations: NDArray[np.float32]


def sensor_views(
    encoders: Sequence[Encoder],
    images: ImageSet,
    modalities: Sequence[str],
    normalisation: Normalisation,
    *,
    readout: Readout,
    size: int,
    batch: int,
    device: torch.device,
    rows: Sequence[int],
) -> dict[str, SensorViews]:
    """Both cuts of some tiles, in one pass over the pixels.

    The whole tile is resized to 3/2 of the size, so that a cut has it: baselines see the very
    pixels that encoders see.

    Args:
        encoders: in eval mode; all see the same input.
        images: the set.
        modalities: sensors, each by itself.
        normalisation: mean and std per modality.
        readout: of the encoders.
        size: side of a cut, pixels.
        batch: tiles at once.
        device: where to compute.
        rows: which tiles.

    Returns:
        modality -> views, in the order of `rows`.
    """
    encoders = [encoder.to(device) for encoder in encoders]
    found = {m: _empty(encoders, m, len(rows), readout) for m in modalities}
    with torch.inference_mode():
        for at, pixels in batches(images, modalities, normalisation, size * 3 // 2, batch, rows):
            for modality, whole in pixels.items():
                views = found[modality]
                for number, cut in enumerate(_cuts(whole.to(device), size)):
                    for encoder, features in zip(encoders, views.features, strict=True):
                        features[number, at] = readout.of(encoder, {modality: cut}).cpu().numpy()
                    bands = cut.flatten(2)
                    views.means[number, at] = bands.mean(-1).cpu().numpy()
                    deviation = bands.std(-1, correction=0).clamp(min=_LEAST_DEVIATION).log()
                    views.deviations[number, at] = deviation.cpu().numpy()
    return found


def _cuts(whole: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return whole[..., :size, :size], whole[..., -size:, -size:]


def _empty(encoders: Sequence[Encoder], modality: str, count: int, readout: Readout) -> SensorViews:
    bands = MODALITIES[modality].channels
    return SensorViews(
        [np.zeros((CUTS, count, readout.width(e)), np.float32) for e in encoders],
        np.zeros((CUTS, count, bands), np.float32),
        np.zeros((CUTS, count, bands), np.float32),
    )

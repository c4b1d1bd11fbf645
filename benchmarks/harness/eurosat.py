"""Accuracy on EuroSAT images by frozen features, trained against fresh, paired by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.eval.datasets.registry import check_labelled, open_set
from terrafm.eval.features.extraction import (
    UNTRAINED_SEEDS,
    Normalisation,
    encoder_features,
    untrained_like,
)
from terrafm.eval.features.readouts import Readout
from terrafm.eval.metrics import RESAMPLES
from terrafm.eval.probes.protocols import Task, predict
from terrafm.models.encoder import Encoder

PROTOCOLS = ("knn20", "linear")
SENSOR = "s2_l1c"


@dataclass(frozen=True)
class Gain:
    """Accuracy of trained encoders and of fresh ones, means over their seeds.

    Attributes:
        trained: 0 to 1.
        untrained: 0 to 1.
        low: lower end of the 95 % interval of the difference, by bootstrap over images.
        high: upper end.
    """

    trained: float
    untrained: float
    low: float
    high: float


def gains(
    folder: str,
    encoders: Sequence[Encoder],
    model: str,
    normalisation: Normalisation,
    *,
    size: int,
) -> dict[tuple[str, str], Gain]:
    """Scores encoders on a folder of a class each.

    Args:
        folder: of EuroSAT's multispectral images.
        encoders: trained, one a seed.
        model: their architecture.
        normalisation: mean and std that they were trained with.
        size: side to which images are resized, pixels.

    Returns:
        (protocol, readout) -> what they gain.
    """
    images = check_labelled(open_set(folder, {}))
    labels = np.asarray(images.labels)
    task = Task(labels, len(images.classes), np.arange(len(labels)), None)
    fresh = [untrained_like(model, seed) for seed in UNTRAINED_SEEDS]
    found: dict[tuple[str, str], Gain] = {}
    for readout in Readout:
        (features,) = encoder_features(
            [*(e.eval() for e in encoders), *fresh], images, [(SENSOR,)], normalisation,
            size=size, batch=50, device=torch.device("cpu"), readout=readout,
        )  # fmt: skip
        for protocol in PROTOCOLS:
            predicted = [
                predict(protocol, readout.finished(rows), task).predictions for rows in features
            ]
            right = [(classes == labels).astype(np.float64) for classes in predicted]
            trained = np.mean(right[: len(encoders)], axis=0)
            untrained = np.mean(right[len(encoders) :], axis=0)
            found[protocol, readout.value] = _gain(trained, untrained)
    return found


def _gain(trained: NDArray[np.float64], untrained: NDArray[np.float64]) -> Gain:
    rows = np.random.default_rng(0).integers(len(trained), size=(RESAMPLES, len(trained)))
    low, high = np.quantile((trained - untrained)[rows].mean(axis=1), [0.025, 0.975])
    return Gain(float(trained.mean()), float(untrained.mean()), float(low), float(high))

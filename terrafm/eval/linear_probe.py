"""A linear classifier on frozen features, by L-BFGS over a small sweep of weight decay.

The loss is convex: mean cross-entropy (one label) or mean binary cross-entropy over images summed
over classes (several labels), plus weight_decay / 2 times the squared weights without the bias.
So the result depends on no learning rate, schedule or start.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn import functional

from terrafm.eval.metrics import average_precisions

# Strongest first: each fit starts from the one before, and a tie goes to the stronger.
WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_ITERATIONS = 200


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier.

    Attributes:
        mean: (D,) of the features it was fitted on.
        scale: (D,) their standard deviations.
        weight: (D, C).
        bias: (C,).
        weight_decay: what it was fitted with.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    weight_decay: float

    def logits(self, features: NDArray[np.float32]) -> Tensor:
        """(N, D) features to (N, C) logits."""
        inputs = (torch.from_numpy(features).to(self.mean) - self.mean) / self.scale
        return inputs @ self.weight + self.bias

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) features to (N, C) probabilities of each label alone."""
        return np.asarray(self.logits(features).sigmoid().cpu().numpy(), np.float64)

    def classes(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, D) features to (N,) classes."""
        return np.asarray(self.logits(features).argmax(-1).cpu().numpy(), np.int64)


def fit(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    weight_decay: float,
    *,
    start: LinearProbe | None = None,
    device: torch.device | None = None,
) -> LinearProbe:
    """Fits one classifier, in float64.

    Features are standardised by their own mean and spread.

    Args:
        features: (N, D).
        labels: (N,) classes, or (N, C) 0 or 1.
        classes: number of classes C.
        weight_decay: strength of the penalty.
        start: where to begin; the minimum is the same from anywhere.
        device: where to compute; by default the CPU.
    """
    inputs = torch.from_numpy(features).to(device=device, dtype=torch.float64)
    mean = inputs.mean(0)
    spread = inputs.std(0, correction=0)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    inputs = (inputs - mean) / scale
    target = torch.from_numpy(labels).to(inputs.device)
    if start is None:
        weight, bias = inputs.new_zeros(inputs.shape[1], classes), inputs.new_zeros(classes)
    else:
        weight, bias = start.weight.clone(), start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = _cross_entropy(inputs @ weight + bias, target)
        value = value + weight_decay / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, scale, weight.detach(), bias.detach(), weight_decay)


def fit_best(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    classes: int,
    *,
    device: torch.device | None = None,
) -> LinearProbe:
    """Fits on the training rows with the weight decay that scores best on the validation rows.

    Best is accuracy for one label, macro average precision for several.

    Args:
        features: (N, D).
        labels: (N,) classes, or (N, C) 0 or 1.
        train: rows to fit on.
        valid: rows to choose by.
        classes: number of classes C.
        device: where to compute.
    """
    best: LinearProbe | None = None
    best_score = -np.inf
    probe: LinearProbe | None = None
    for weight_decay in WEIGHT_DECAYS:
        probe = fit(
            features[train], labels[train], classes, weight_decay, start=probe, device=device
        )
        score = _score(probe, features[valid], labels[valid])
        if score > best_score:
            best, best_score = probe, score
    assert best is not None
    return best


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 1:
        return functional.cross_entropy(logits, target)
    losses = functional.binary_cross_entropy_with_logits(
        logits, target.to(logits), reduction="none"
    )
    return losses.sum(-1).mean()


def _score(probe: LinearProbe, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    if labels.ndim == 1:
        return float(accuracy_score(labels, probe.classes(features)))
    # A validation split without any label has nothing to say: all weight decays tie.
    precisions = average_precisions(probe.probabilities(features), labels)
    return float(np.nanmean(precisions)) if np.isfinite(precisions).any() else 0.0

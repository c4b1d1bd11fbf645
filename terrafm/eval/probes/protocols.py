"""Protocols by name; those on cached features: nearest neighbours and the linear probe.

A set with splits is fitted on its training split, tuned on its validation split and scored on its
test split. A set without is scored as a whole: neighbours leave out the image (and its place);
the linear probe is cross-validated, places kept together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from terrafm.errors import UsageError
from terrafm.eval.probes.knn import TEMPERATURE, nearest_in, vote, vote_weights
from terrafm.eval.probes.linear import LinearProbe, fit, fit_best

KNN = {"knn20": (20, TEMPERATURE), "knn5": (5, None)}
# On cached features; what is run when none is named.
PROTOCOLS = ("knn20", "knn5", "linear")
CLASS_PROTOCOLS = (*PROTOCOLS, "finetune")
MASK_DEFAULTS = ("linear",)
MASK_PROTOCOLS = ("linear", "upernet", "finetune")
FOLDS = 5


@dataclass(frozen=True)
class Task:
    """Labels and who may learn from whom.

    Attributes:
        labels: (N,) classes, or (N, C) 0 or 1.
        classes: number of classes C.
        groups: (N,) images of one place share a number.
        splits: (N,) "train", "valid" or "test", or None.
        seed: of the folds.
    """

    labels: NDArray[np.int64]
    classes: int
    groups: NDArray[np.int64]
    splits: NDArray[np.str_] | None
    seed: int = 0

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split.

        Raises:
            UsageError: it has none.
        """
        assert self.splits is not None
        found = np.flatnonzero(self.splits == split)
        if not len(found):
            raise UsageError(f"the labelled set has no images in its {split} split")
        return found


@dataclass(frozen=True)
class Outcome:
    """Predictions of one protocol.

    Attributes:
        rows: (M,) which images were scored.
        predictions: (M,) classes, or (M, C) probabilities.
        details: JSON-able, what was chosen on the way.
    """

    rows: NDArray[np.int64]
    predictions: NDArray[Any]
    details: dict[str, Any] = field(default_factory=dict)


def predict(protocol: str, features: NDArray[np.float32], task: Task) -> Outcome:
    """Runs one protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        features: (N, D) rows of unit length.
        task: the labels.
    """
    if protocol in KNN:
        return _neighbours(features, task, *KNN[protocol])
    return _linear(features, task)


def _neighbours(
    features: NDArray[np.float32], task: Task, k: int, temperature: float | None
) -> Outcome:
    if task.splits is None:
        rows = bank = np.arange(len(features))
        found, similarities = nearest_in(features, features, k, task.groups, task.groups)
    else:
        rows, bank = task.rows("test"), task.rows("train")
        found, similarities = nearest_in(features[rows], features[bank], k)
    labels = task.labels[bank]
    used = {"k": int((found >= 0).sum(1).max())}
    if labels.ndim == 1:
        return Outcome(rows, vote(found, similarities, labels, task.classes, temperature), used)
    weights = vote_weights(found, similarities, temperature)
    total = np.maximum(weights.sum(1, keepdims=True), 1e-12)
    shares = np.einsum("nk,nkc->nc", weights / total, labels[found].astype(np.float64))
    # Rounding may lift a unanimous vote above 1.
    return Outcome(rows, np.clip(shares, 0.0, 1.0), used)


def _linear(features: NDArray[np.float32], task: Task) -> Outcome:
    if task.splits is not None:
        rows = task.rows("test")
        probe = fit_best(features, task.labels, task.rows("train"), task.rows("valid"))
        predictions = _predict(probe, features[rows], task.labels)
        return Outcome(rows, predictions, {"weight_decay": [probe.weight_decay]})
    every = np.arange(len(features))
    shape = (len(features),) if task.labels.ndim == 1 else (len(features), task.classes)
    predicted = np.zeros(shape, np.int64 if task.labels.ndim == 1 else np.float64)
    chosen = []
    for train, valid, test in folds(task):
        best = fit_best(features, task.labels, train, valid)
        rest = np.concatenate([train, valid])
        probe = fit(features[rest], task.labels[rest], best.weight_decay)
        predicted[test] = _predict(probe, features[test], task.labels)
        chosen.append(best.weight_decay)
    return Outcome(every, predicted, {"weight_decay": chosen, "folds": len(chosen)})


def _predict(
    probe: LinearProbe, features: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[Any]:
    return probe.classes(features) if labels.ndim == 1 else probe.probabilities(features)


def folds(
    task: Task,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Training, validation and test rows of each fold; the next fold's test rows validate.

    Raises:
        UsageError: fewer than three places.
    """
    count = min(FOLDS, len(np.unique(task.groups)))
    if count < 3:
        raise UsageError(
            f"the labelled set has {count} places: cross-validation needs "
            "three or more (--protocol knn20 does not)"
        )
    everyone = np.arange(len(task.labels))
    if task.labels.ndim == 1 and np.bincount(task.labels).max() >= count:
        stratified = StratifiedGroupKFold(count, shuffle=True, random_state=task.seed)
        parts = [test for _, test in stratified.split(everyone, task.labels, task.groups)]
    else:
        plain = GroupKFold(count, shuffle=True, random_state=task.seed)
        parts = [test for _, test in plain.split(everyone, groups=task.groups)]
    parts = [part for part in parts if len(part)]
    for i, test in enumerate(parts):
        valid = parts[(i + 1) % len(parts)]
        train = np.setdiff1d(everyone, np.concatenate([test, valid]))
        yield train, valid, test

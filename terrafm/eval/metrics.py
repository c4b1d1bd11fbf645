"""Scores of predictions, each with its bootstrap interval; the metrics are torchmetrics'.

The bootstrap resamples images, or whole groups of images of one place, with replacement
(percentile interval, Efron & Tibshirani 1993). One seed gives the same resamples to every row of
a table, so that rows of one table are compared on the same draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 1000
CONFIDENCE = 0.95
THRESHOLD = 0.5
# Numbers that one batch of resamples may hold.
_BATCH_NUMBERS = 4_000_000
_PADDING = -1


@cache
def _metric() -> ModuleType:
    """Torchmetrics' functions; with them come torchvision and half of SciPy, which take seconds."""
    from torchmetrics import functional

    module: ModuleType = functional.classification
    return module


@dataclass(frozen=True)
class Interval:
    """A score and the interval that the bootstrap gives it."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


def resampled_rows(groups: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """Rows drawn with replacement, a group at a time.

    Args:
        groups: (N,) images of one place share a number; `arange(N)` draws images.
        resamples: number of draws R.
        seed: of the draws.

    Returns:
        (R, M) rows, -1 behind the end of draws of fewer images than the largest.
    """
    generator = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    drawn = generator.integers(count, size=(resamples, count))
    if count == len(groups):
        return np.asarray(np.argsort(group)[drawn], np.int64)
    members = [np.flatnonzero(group == g) for g in range(count)]
    rows = [np.concatenate([members[g] for g in draw]) for draw in drawn]
    padded = np.full((resamples, max(map(len, rows))), _PADDING, np.int64)
    for row, found in zip(padded, rows, strict=True):
        row[: len(found)] = found
    return padded


def single_label_scores(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: int,
    groups: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Accuracy, mean recall over the classes that occur, and macro F1.

    Args:
        predicted: (N,) classes.
        labels: (N,) classes.
        classes: number of classes.
        groups: (N,) as `resampled_rows` takes them.
        resamples: bootstrap draws.
        seed: of the draws.
    """

    def of(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        chosen, target = _taken(predicted, rows), _taken(labels, rows)
        options = {"num_classes": classes, "ignore_index": _PADDING, "validate_args": False}
        each = {"multidim_average": "samplewise", **options}
        counts = _metric().multiclass_stat_scores(chosen, target, average="none", **each)
        hits, support = counts[..., 0], counts[..., 4]
        # torchmetrics' macro recall counts a class that is only predicted as 0; scikit-learn's
        # balanced accuracy is over the classes that occur.
        recall = torch.where(support > 0, hits / support.clamp(min=1), torch.nan)
        return {
            "accuracy": _metric().multiclass_accuracy(chosen, target, average="micro", **each),
            "balanced_accuracy": recall.nanmean(-1),
            "f1_macro": _metric().multiclass_f1_score(chosen, target, average="macro", **each),
        }

    return _intervals(of, groups, classes, resamples, seed)


def multi_label_scores(
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """F1 at a threshold of 0.5 and average precision, micro and macro.

    Macro average precision is the mean over the classes that occur in the labels: it is not
    defined for the others. Macro F1 is over all classes, an absent one that is never predicted
    counts 0, as in torchmetrics and scikit-learn.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C) 0 or 1.
        groups: (N,) as `resampled_rows` takes them.
        resamples: bootstrap draws.
        seed: of the draws.
    """
    classes = labels.shape[1]

    def of(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        given, target = _taken(scores, rows).transpose(1, 2), _taken(labels, rows).transpose(1, 2)
        target = torch.where(torch.from_numpy(rows)[:, None] < 0, _PADDING, target)
        options = {"num_labels": classes, "ignore_index": _PADDING, "validate_args": False}
        each = {"multidim_average": "samplewise", "threshold": THRESHOLD, **options}
        precision = [_average_precisions(scores[r[r >= 0]], labels[r[r >= 0]]) for r in rows]
        return {
            "f1_micro": _metric().multilabel_f1_score(given, target, average="micro", **each),
            "f1_macro": _metric().multilabel_f1_score(given, target, average="macro", **each),
            "map_micro": torch.tensor([micro for micro, _ in precision]),
            "map_macro": torch.tensor([macro for _, macro in precision]),
        }

    return _intervals(of, groups, classes, resamples, seed)


def average_precisions(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Average precision of each class; NaN for a class that no label has.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C) 0 or 1.

    Returns:
        (C,).
    """
    given, target = torch.from_numpy(scores), torch.from_numpy(labels)
    found = [
        float(_metric().binary_average_precision(given[:, c], target[:, c], validate_args=False))
        if bool(target[:, c].any())
        else float("nan")
        for c in range(labels.shape[1])
    ]
    return np.array(found)


def confusion(
    predicted: Tensor, labels: Tensor, classes: int, ignore: int | None
) -> NDArray[np.int64]:
    """Pixels by class and predicted class, without those whose label is `ignore`.

    Args:
        predicted: (...) classes.
        labels: (...) classes, `ignore` where there is none.
        classes: number of classes.
        ignore: the label of pixels that do not count.

    Returns:
        (C, C), true classes along the rows.
    """
    counts = _metric().multiclass_confusion_matrix(
        predicted.reshape(-1), labels.reshape(-1), classes, ignore_index=ignore
    )
    return np.asarray(counts.cpu().numpy(), np.int64)


def segmentation_scores(
    confusions: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    ignore: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Mean intersection over union and pixel accuracy of all images together.

    mIoU is the mean over the classes that occur among labels or predictions.

    Args:
        confusions: (N, C, C) of each image, true classes along the rows.
        groups: (N,) as `resampled_rows` takes them.
        ignore: a class that is nodata: it has no pixels among the labels and no part in the mean.
        resamples: bootstrap draws.
        seed: of the draws.
    """
    classes = confusions.shape[1]
    counted = np.ones(classes, np.bool_)
    if ignore is not None and 0 <= ignore < classes:
        counted[ignore] = False

    def of(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        padded = np.concatenate([confusions, np.zeros((1, classes, classes), np.int64)])
        total = torch.from_numpy(np.stack([padded[r].sum(0) for r in rows]))
        hits = total.diagonal(dim1=1, dim2=2)
        union = total.sum(1) + total.sum(2) - hits
        shares = torch.where(union > 0, hits / union.clamp(min=1), torch.nan)
        return {
            "miou": shares[:, torch.from_numpy(counted)].nanmean(-1),
            "pixel_accuracy": hits.sum(-1) / total.sum((1, 2)).clamp(min=1),
        }

    return _intervals(of, groups, classes, resamples, seed)


def as_dicts(scores: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """JSON-able."""
    return {name: interval.as_dict() for name, interval in scores.items()}


def _average_precisions(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    if not labels.any():
        return float("nan"), float("nan")
    micro = _metric().binary_average_precision(
        torch.from_numpy(scores).reshape(-1),
        torch.from_numpy(labels).reshape(-1),
        validate_args=False,
    )
    return float(micro), float(np.nanmean(average_precisions(scores, labels)))


def _taken(values: NDArray[np.generic], rows: NDArray[np.int64]) -> Tensor:
    """(R, M, ...) values of drawn rows; the padding of integers stays padding."""
    taken = torch.from_numpy(values[rows])
    if values.ndim == 1:
        taken = torch.where(torch.from_numpy(rows) < 0, _PADDING, taken)
    return taken


def _intervals(
    scores_of: Callable[[NDArray[np.int64]], dict[str, Tensor]],
    groups: NDArray[np.int64],
    classes: int,
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    def scored(chosen: NDArray[np.int64]) -> dict[str, Tensor]:
        # torchmetrics squeezes a single draw away: there is always one more.
        found = scores_of(np.concatenate([chosen, chosen[:1]]))
        return {name: values[:-1] for name, values in found.items()}

    whole = scored(np.arange(len(groups))[None])
    rows = resampled_rows(groups, resamples, seed)
    step = max(1, _BATCH_NUMBERS // (rows.shape[1] * classes))
    batches = [scored(rows[start : start + step]) for start in range(0, resamples, step)]
    tail = (1 - CONFIDENCE) / 2
    found = {}
    for name, value in whole.items():
        drawn = torch.cat([batch[name] for batch in batches]).double().numpy()
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        found[name] = Interval(float(value), float(low), float(high))
    return found

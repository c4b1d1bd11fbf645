"""Nearest neighbours of frozen features: how good an embedding is without training anything.

As DINO (Caron et al. 2021): k = 20 cosine neighbours vote with weight exp(similarity / 0.07); and
a plain majority vote of k = 5. Beside every score stand the same two of an untrained encoder and
of the mean spectrum.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from terrafm.errors import UsageError
from terrafm.eval.datasets import LabelledSet, open_labelled
from terrafm.eval.features import UNTRAINED_SEED, cls_features, mean_spectra, untrained_like
from terrafm.models.encoder import Encoder
from terrafm.models.weights import infer_model_name, load_encoder

TEMPERATURE = 0.07
_CHUNK = 512


def nearest(
    features: NDArray[np.float32], k: int, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most similar other images of every image.

    Args:
        features: (N, D) rows of unit length.
        k: number of neighbours.
        groups: (N,) an image's own group is left out; `arange(N)` leaves out only itself.

    Returns:
        (N, k) rows of the neighbours, most similar first, equal ones in row order, and their
        cosine similarities; -1 and -inf where fewer than k are left.
    """
    count = len(features)
    rows = np.full((count, k), -1, np.int64)
    similarities = np.full((count, k), -np.inf, np.float32)
    for start in range(0, count, _CHUNK):
        block = slice(start, min(start + _CHUNK, count))
        similarity = features[block] @ features.T
        similarity[groups[block, None] == groups[None, :]] = -np.inf
        least = np.partition(similarity, count - k, axis=1)[:, count - k]
        for i in range(len(similarity)):
            candidates = np.flatnonzero((similarity[i] >= least[i]) & (similarity[i] > -np.inf))
            order = np.argsort(-similarity[i, candidates], kind="stable")[:k]
            rows[start + i, : len(order)] = candidates[order]
            similarities[start + i, : len(order)] = similarity[i, candidates[order]]
    return rows, similarities


def vote(
    neighbours: NDArray[np.int64],
    similarities: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    temperature: float | None,
) -> NDArray[np.int64]:
    """The class that the neighbours vote for; ties go to the class with the lower number.

    Args:
        neighbours: (N, k) rows, -1 for none.
        similarities: (N, k) cosine similarities.
        labels: (N,) classes of the rows.
        classes: number of classes.
        temperature: votes weigh exp(similarity / temperature); None for one each.

    Returns:
        (N,) classes.
    """
    valid = neighbours >= 0
    weights = valid.astype(np.float64)
    if temperature is not None:
        # Relative to the nearest neighbour, so that nothing overflows.
        finite = np.where(valid, similarities, -1.0).astype(np.float64)
        weights = np.where(valid, np.exp((finite - finite[:, :1]) / temperature), 0.0)
    ballots = np.zeros((len(neighbours), classes))
    voters = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    np.add.at(ballots, (voters, labels[neighbours].ravel()), weights.ravel())
    winners: NDArray[np.int64] = ballots.argmax(axis=1)
    return winners


def leave_one_out(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predictions of every image from the others.

    Returns:
        (N,) predictions of the weighted vote of 20, and of the plain vote of 5. Where fewer
        images are left, all of them vote.
    """
    alone = np.arange(len(labels)) if groups is None else groups
    k = min(20, len(labels) - 1)
    rows, similarities = nearest(features, k, alone)
    weighted = vote(rows, similarities, labels, classes, TEMPERATURE)
    plain = vote(rows[:, :5], similarities[:, :5], labels, classes, None)
    return weighted, plain


def evaluate_knn(
    weights: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    size: int = 224,
    batch: int = 32,
    device: str | None = None,
    leave_out: str = "image",
) -> dict[str, Any]:
    """Scores weights on a labelled set by leave-one-out nearest neighbours.

    Args:
        weights: URI of exported or released weights.
        data: URI of an EuroSAT-MS folder, or of a dataset made by ingest, whose labels are the
            majority classes of the tiles.
        modalities: those to use, fused; by default all that both weights and data have.
        size: side to which images are resized, pixels.
        batch: images at once.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        leave_out: "image" leaves out only the image itself; "cell" also its neighbours cut from
            the same grid cell, which look alike for being near, not for being of one class.

    Returns:
        JSON-able: knn20, knn5 (accuracies, 0..1), the same for "untrained" and "mean_spectrum",
        and how they came about.

    Raises:
        UsageError: unreadable weights, a labelled set that does not exist, has no images or one
            class, or no modality in common.
    """
    if leave_out not in ("image", "cell"):
        raise UsageError(f"leave_out must be image or cell, not {leave_out!r}")
    images = open_labelled(data)
    encoder = load_encoder(weights)
    name = infer_model_name(encoder.state_dict(), os.fspath(weights))
    notes: list[str] = []
    used = _choose_modalities(encoder, images, modalities, notes)
    normalisation, source = _normalisation(encoder, images, used, notes)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trained, untrained = cls_features(
        [encoder, untrained_like(name)],
        images,
        used,
        normalisation,
        size=size,
        batch=batch,
        device=where,
    )
    groups = images.groups if leave_out == "cell" else None
    if groups is not None and len(np.unique(groups)) < 2:
        raise UsageError(f"{images.uri} has one grid cell: leave_out=cell leaves no neighbours")
    labels, classes = images.labels, len(images.classes)
    count = len(labels)
    if count - 1 < 20:
        notes.append(f"{count} images: k is {count - 1} instead of 20")
    if count - 1 < 5:
        notes.append(f"{count} images: k is {count - 1} instead of 5")
    scores = {}
    for key, features in (
        ("trained", trained),
        ("untrained", untrained),
        ("mean_spectrum", mean_spectra(images, used)),
    ):
        scores[key] = leave_one_out(features, labels, classes, groups)
    weighted, plain = scores["trained"]
    per_class = {
        images.classes[c]: {
            "n": int((labels == c).sum()),
            "knn20": _accuracy(weighted, labels, labels == c),
            "knn5": _accuracy(plain, labels, labels == c),
        }
        for c in np.unique(labels)
    }
    return {
        **_pair(scores["trained"], labels),
        "untrained": _pair(scores["untrained"], labels),
        "mean_spectrum": _pair(scores["mean_spectrum"], labels),
        "balanced_knn20": float(np.mean([row["knn20"] for row in per_class.values()])),
        "majority_share": float(np.bincount(labels).max() / count),
        "n": count,
        "classes": list(per_class),
        "per_class": per_class,
        "split": "leave-one-out" if leave_out == "image" else "leave-one-cell-out",
        "k": {"knn20": min(20, count - 1), "knn5": min(5, count - 1)},
        "temperature": TEMPERATURE,
        "ties": "lower class number",
        "model": name,
        "weights": os.fspath(weights),
        "data": images.uri,
        "modalities": list(used),
        "bands": {modality: images.bands[modality] for modality in used},
        "image_size": size,
        "normalisation": {
            "source": source,
            **{
                modality: {
                    "mean": [float(v) for v in normalisation[modality]["mean"]],
                    "std": [float(v) for v in normalisation[modality]["std"]],
                }
                for modality in used
            },
        },
        "untrained_seed": UNTRAINED_SEED,
        "notes": notes,
    }


def render(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    table = Table(
        title=f"kNN of {result['model']}: {result['n']} images, {len(result['classes'])} classes",
        caption="\n".join(
            [
                f"{result['split']}; {', '.join(result['modalities'])} at "
                f"{result['image_size']} pixels",
                f"normalisation: {result['normalisation']['source']}",
                f"largest class {result['majority_share']:.1%}, "
                f"mean of classes (k = 20) {result['balanced_knn20']:.1%}",
                *result["notes"],
            ]
        ),
        caption_justify="left",
    )
    table.add_column("features")
    table.add_column("k = 20", justify="right")
    table.add_column("k = 5", justify="right")
    for name, row in (
        ("these weights", result),
        ("untrained", result["untrained"]),
        ("mean spectrum", result["mean_spectrum"]),
    ):
        table.add_row(name, f"{row['knn20']:.1%}", f"{row['knn5']:.1%}")
    table.add_section()
    for name, row in result["per_class"].items():
        table.add_row(f"{name} ({row['n']})", f"{row['knn20']:.1%}", f"{row['knn5']:.1%}")
    return table


def _accuracy(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], of: NDArray[np.bool_]
) -> float:
    return float((predicted[of] == labels[of]).mean())


def _pair(
    predictions: tuple[NDArray[np.int64], NDArray[np.int64]], labels: NDArray[np.int64]
) -> dict[str, float]:
    everyone = np.ones(len(labels), np.bool_)
    weighted, plain = predictions
    return {
        "knn20": _accuracy(weighted, labels, everyone),
        "knn5": _accuracy(plain, labels, everyone),
    }


def _choose_modalities(
    encoder: Encoder, images: LabelledSet, wanted: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    known = tuple(encoder.contract.modalities) if encoder.contract else images.modalities
    for name in wanted or ():
        if name not in images.modalities or name not in known:
            raise UsageError(
                f"modality {name} is not in both: the weights know {', '.join(known)}, "
                f"{images.uri} has {', '.join(images.modalities)}"
            )
    used = tuple(m for m in images.modalities if m in (wanted or known))
    if not used:
        raise UsageError(
            f"no modality in common: the weights know {', '.join(known)}, {images.uri} has "
            f"{', '.join(images.modalities)}"
        )
    if len(used) > 1 and not encoder.fusion_loaded:
        one = "s2_l2a" if "s2_l2a" in used else used[0]
        if wanted:
            raise UsageError("these weights have no fusion parameters: choose one modality")
        notes.append(f"the weights have no fusion parameters: only {one} is used")
        used = (one,)
    return used


def _normalisation(
    encoder: Encoder, images: LabelledSet, used: Sequence[str], notes: list[str]
) -> tuple[dict[str, dict[str, Any]], str]:
    if encoder.contract is not None:
        contract = encoder.contract.modalities
        own = {m: {"mean": contract[m].mean, "std": contract[m].std} for m in used}
        return own, "weights contract"
    notes.append(
        "the weights state no band order and no statistics: the order of this library and the "
        "statistics of the labelled set are assumed"
    )
    statistics = images.statistics()
    return {m: statistics[m] for m in used}, "assumed: statistics of the labelled set"

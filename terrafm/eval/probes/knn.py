"""Nearest neighbours of frozen features: how good an embedding is without training anything.

As DINO (Caron et al. 2021): k = 20 cosine neighbours vote with weight exp(similarity / 0.07); and
a plain majority vote of k = 5. Beside every score stand the same two of untrained encoders, their
mean, and of the mean spectrum.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from terrafm.errors import UsageError
from terrafm.eval.datasets.compatibility import modality_choices, normalisation_for
from terrafm.eval.datasets.labelled import LabelledSet
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.features.extraction import UNTRAINED_SEEDS, input_side, mean_spectra
from terrafm.eval.features.job import (
    EncoderFeatures,
    FeatureWorkers,
    extract_features,
    untrained_spec,
)
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import FIRST_CHOICE
from terrafm.models.weights import infer_model_name, load_encoder
from terrafm.storage import absolute

TEMPERATURE = 0.07
_CHUNK = 512
_SHOWN = ("knn20", "knn5", "untrained", "mean_spectrum", "n")


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
    return nearest_in(features, features, k, groups, groups)


def nearest_in(
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
    k: int,
    query_groups: NDArray[np.int64] | None = None,
    bank_groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k images of a bank that are most similar to every query.

    Args:
        queries: (Q, D) rows of unit length.
        bank: (N, D) rows of unit length.
        k: number of neighbours.
        query_groups: (Q,) with `bank_groups`: images of the query's own group are left out.
        bank_groups: (N,).

    Returns:
        (Q, k) rows of the bank and their similarities, as `nearest`.
    """
    count = len(queries)
    rows = np.full((count, k), -1, np.int64)
    similarities = np.full((count, k), -np.inf, np.float32)
    kept = min(k, len(bank))
    for start in range(0, count, _CHUNK):
        block = slice(start, min(start + _CHUNK, count))
        similarity = queries[block] @ bank.T
        if query_groups is not None and bank_groups is not None:
            similarity[query_groups[block, None] == bank_groups[None, :]] = -np.inf
        least = np.partition(similarity, len(bank) - kept, axis=1)[:, len(bank) - kept]
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
    weights = vote_weights(neighbours, similarities, temperature)
    ballots = np.zeros((len(neighbours), classes))
    voters = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    np.add.at(ballots, (voters, labels[neighbours].ravel()), weights.ravel())
    winners: NDArray[np.int64] = ballots.argmax(axis=1)
    return winners


def vote_weights(
    neighbours: NDArray[np.int64], similarities: NDArray[np.float32], temperature: float | None
) -> NDArray[np.float64]:
    """How much each neighbour's vote weighs, 0 for none.

    Args:
        neighbours: (N, k) rows, -1 for none.
        similarities: (N, k) cosine similarities.
        temperature: exp(similarity / temperature), up to a factor per row; None for one each.

    Returns:
        (N, k).
    """
    valid = neighbours >= 0
    if temperature is None:
        return valid.astype(np.float64)
    # Relative to the nearest neighbour, so that nothing overflows.
    finite = np.where(valid, similarities, -1.0).astype(np.float64)
    return np.where(valid, np.exp((finite - finite[:, :1]) / temperature), 0.0)


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
    size: int | None = None,
    batch: int = 32,
    device: str | None = None,
    readout: Readout = Readout.CLS,
    leave_out: str = "image",
    baselines: bool = True,
    workers: FeatureWorkers | None = None,
) -> dict[str, Any]:
    """Scores weights on a labelled set by leave-one-out nearest neighbours.

    Where the set has several modalities, each is scored alone and all are scored fused. The
    headline is one sensor, as published scores are: Sentinel-2 L2A, or else what is there.

    Args:
        weights: URI of exported or released weights.
        data: URI of an EuroSAT-MS folder, or of a dataset made by ingest, whose labels are the
            majority classes of the tiles.
        modalities: only these, fused if they are several.
        size: side to which images are resized, pixels; by default as the weights were trained.
        batch: images at once.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        readout: which numbers of the encoder are an image's embedding.
        leave_out: "image" leaves out only the image itself; "cell" also its neighbours cut from
            the same grid cell, which look alike for being near, not for being of one class.
        baselines: score five untrained encoders and mean spectra as well.
        workers: Ray workers that make the features; by default this process.

    Returns:
        JSON-able: knn20, knn5 (accuracies, 0..1) and the same for "untrained" and
        "mean_spectrum" where baselines are wanted, of the headline ("untrained" is a mean, with
        "spread", the standard deviations over its seeds); all of them per modality and
        "fused" in "by_modality"; and how they came about.

    Raises:
        UsageError: unreadable weights, a labelled set that does not exist, has no images or one
            class, or no modality in common.
    """
    if leave_out not in ("image", "cell"):
        raise UsageError(f"leave_out must be image or cell, not {leave_out!r}")
    images = open_labelled(data)
    if images.splits is not None or images.labels.ndim > 1:
        raise UsageError(
            f"{images.uri} has splits or several labels per image: score it with "
            "terrafm evaluate compare"
        )
    groups = images.groups if leave_out == "cell" else np.arange(len(images.labels))
    if len(np.unique(groups)) < 2:
        raise UsageError(f"{images.uri} has one grid cell: leave_out=cell leaves no neighbours")
    encoder = load_encoder(weights)
    size = input_side(encoder, size)
    name = infer_model_name(encoder.state_dict(), os.fspath(weights))
    notes: list[str] = []
    choices = modality_choices(encoder, images, modalities, notes)
    used = tuple(m for m in images.modalities if any(m in choice for choice in choices))
    normalisation, source = normalisation_for(encoder, images, used, notes)
    fresh = [untrained_spec(name, seed, used) for seed in UNTRAINED_SEEDS] if baselines else []
    encoders = (absolute(weights), *fresh)
    extractor = EncoderFeatures(encoders, tuple(choices), normalisation, size, batch, (), readout)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    together = extract_features(extractor, images, torch.device(device), workers)
    flat = [
        readout.finished(part) for part in np.split(together, len(choices) * len(encoders), axis=1)
    ]
    features = [flat[at : at + len(encoders)] for at in range(0, len(flat), len(encoders))]
    scores = {}
    spectra = mean_spectra(images, choices) if baselines else []
    for number, (choice, vectors) in enumerate(zip(choices, features, strict=True)):
        rows = np.flatnonzero(np.abs(vectors[0]).sum(axis=1))
        title = choice[0] if len(choice) == 1 else "fused"
        others = {"untrained": vectors[1:], "mean_spectrum": [spectra[number]]} if baselines else {}
        scores[title] = _score(images, groups, rows, vectors[0], others)
    headline = next(title for title in (*FIRST_CHOICE, "fused") if title in scores)
    best = scores[headline]
    _note_small_k(best["n"], notes)
    return {
        **best,
        "headline": headline,
        "by_modality": {
            title: {key: score[key] for key in _SHOWN if key in score}
            for title, score in scores.items()
        },
        "classes": list(best["per_class"]),
        "split": "leave-one-out" if leave_out == "image" else "leave-one-cell-out",
        "k": {"knn20": min(20, best["n"] - 1), "knn5": min(5, best["n"] - 1)},
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
        "readout": readout.value,
        "untrained_seeds": list(UNTRAINED_SEEDS),
        "notes": notes,
    }


def render(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    table = Table(
        title=f"kNN of {result['model']}: {result['n']} images, {len(result['classes'])} classes",
        caption="\n".join(
            [
                f"{result['split']} at {result['image_size']} pixels, readout {result['readout']}, "
                "accuracy for k = 20 / k = 5",
                f"untrained: mean of {len(result['untrained_seeds'])} seeds",
                f"normalisation: {result['normalisation']['source']}",
                f"largest class {result['majority_share']:.1%}; mean over classes "
                f"{result['balanced_knn20']:.1%} ({result['headline']})",
                *result["notes"],
            ]
        ),
        caption_justify="left",
    )
    table.add_column("")
    for title in ("these weights", "untrained", "mean spectrum"):
        table.add_column(title, justify="right")

    def show(row: dict[str, float]) -> str:
        return f"{row['knn20']:.1%} / {row['knn5']:.1%}"

    for title, row in result["by_modality"].items():
        table.add_row(title, show(row), show(row["untrained"]), show(row["mean_spectrum"]))
    table.add_section()
    for title, row in result["per_class"].items():
        table.add_row(f"{title} ({row['n']})", show(row))
    return table


def _score(
    images: LabelledSet,
    groups: NDArray[np.int64],
    rows: NDArray[np.int64],
    features: NDArray[np.float32],
    baselines: Mapping[str, Sequence[NDArray[np.float32]]],
) -> dict[str, Any]:
    """Accuracies of an encoder's features and of the baselines over some images of the set."""
    labels = images.labels[rows]
    if len(np.unique(labels)) < 2 or len(np.unique(groups[rows])) < 2:
        raise UsageError(
            f"{images.uri}: {len(rows)} images of one class or place have the modality"
        )

    def predict(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return leave_one_out(vectors[rows], labels, len(images.classes), groups[rows])

    weighted, plain = predict(features)
    per_class = {
        images.classes[c]: {
            "n": int((labels == c).sum()),
            "knn20": _accuracy(weighted, labels, labels == c),
            "knn5": _accuracy(plain, labels, labels == c),
        }
        for c in np.unique(labels)
    }
    return {
        **_pair((weighted, plain), labels),
        **{
            name: _mean([_pair(predict(vectors), labels) for vectors in several])
            for name, several in baselines.items()
        },
        "balanced_knn20": float(np.mean([row["knn20"] for row in per_class.values()])),
        "majority_share": float(np.bincount(labels).max() / len(labels)),
        "n": len(labels),
        "per_class": per_class,
    }


def _note_small_k(count: int, notes: list[str]) -> None:
    for k in (20, 5):
        if count - 1 < k:
            notes.append(f"{count} images: k is {count - 1} instead of {k}")


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


def _mean(pairs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The mean of several encoders' accuracies, with their spread."""
    mean = {name: float(np.mean([pair[name] for pair in pairs])) for name in pairs[0]}
    if len(pairs) == 1:
        return mean
    spread = {name: float(np.std([pair[name] for pair in pairs], ddof=1)) for name in pairs[0]}
    return mean | {"spread": spread}

"""One table: the mean spectrum, an untrained encoder, the weights, and other encoders.

Every score stands with its 95 % bootstrap interval, and beside the table stands how it came
about: which band went where, whose normalisation, which splits, the seed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from terrafm.errors import UsageError
from terrafm.eval.datasets import OpenOptions, open_labelled
from terrafm.eval.feature_cache import cached_features
from terrafm.eval.labelled import ImageSet, LabelledSet
from terrafm.eval.metrics import (
    RESAMPLES,
    as_dicts,
    multi_label_scores,
    single_label_scores,
)
from terrafm.eval.protocols import FOLDS, PROTOCOLS, Outcome, Task, predict
from terrafm.eval.rows import Look, Row, mean_spectrum_row, weights_rows
from terrafm.eval.timm_rows import PREFIX, timm_row
from terrafm.modalities import MODALITIES

_FIRST_CHOICE = ("s2_l2a", "s2_l1c", "s1")
_NAMES = {
    "knn20": "kNN k=20",
    "knn5": "kNN k=5",
    "linear": "linear probe",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "map_macro": "mAP",
    "map_micro": "micro mAP",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made.

    Attributes:
        modalities: those to use, fused if they are several; by default one, L2A before L1C before
            radar.
        protocols: some of `PROTOCOLS`.
        features: URI of the folder that keeps features; None keeps none.
        size: side to which images are resized, pixels.
        batch: images at once.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        by_set: normalise by the set's own statistics, not by those that weights state.
        seed: of folds and bootstrap.
        resamples: bootstrap draws.
        open: what the set does not say of itself.
    """

    modalities: Sequence[str] | None = None
    protocols: Sequence[str] = PROTOCOLS
    features: str | None = None
    size: int = 224
    batch: int = 32
    device: str | None = None
    by_set: bool = False
    seed: int = 0
    resamples: int = RESAMPLES
    open: OpenOptions = field(default_factory=OpenOptions)

    def look(self, images: ImageSet) -> Look:
        """How a set is looked at.

        Raises:
            UsageError: a modality that it does not have.
        """
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Look(
            _modalities(images, self.modalities),
            self.size,
            self.batch,
            torch.device(device),
            self.by_set,
        )


def compare(
    data: str | os.PathLike[str],
    weights: Sequence[str | os.PathLike[str]] = (),
    baselines: Sequence[str] = (),
    options: CompareOptions | None = None,
) -> dict[str, Any]:
    """Scores encoders on a labelled set, all by the same protocols.

    Args:
        data: URI of the labelled set.
        weights: URIs of exported or released TerraFM weights.
        baselines: other encoders, `timm:NAME` or `timm:NAME@URI`.
        options: how.

    Returns:
        JSON-able: "rows" of {"title", "seen", "features", "protocols": protocol -> {"scores":
        metric -> {"value", "low", "high"}, ...}}, and how they came about.

    Raises:
        UsageError: an unreadable or unfit encoder, an unknown protocol, or a labelled set that
            does not exist, has no images or one class.
    """
    options = options or CompareOptions()
    for protocol in options.protocols:
        if protocol not in PROTOCOLS:
            raise UsageError(f"unknown protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
    images = open_labelled(data, options.open)
    notes: list[str] = []
    look = options.look(images)
    rows = table_rows(images, look, weights, baselines, notes)
    found = [cached_features(options.features, r.title, r.depends_on, images, r.compute)
             for r in rows]  # fmt: skip
    # All rows of the table are scored on the same images: those that have the modality.
    usable = np.all([np.abs(features).sum(1) > 0 for features, _ in found], axis=0)
    if not usable.all():
        notes.append(f"{int((~usable).sum())} images lack {', '.join(look.modalities)}: left out")
    groups = images.groups[usable]
    if images.splits is None and len(np.unique(groups)) < 2:
        notes.append("all images are of one place: they are left out one by one")
        groups = np.arange(len(groups))
    task = Task(
        images.labels[usable],
        len(images.classes),
        groups,
        None if images.splits is None else images.splits[usable],
        options.seed,
    )
    _check(images, task)
    shown = [
        {
            "title": row.title,
            "seen": row.seen,
            "features": kept,
            "protocols": {
                protocol: _scored(
                    predict(protocol, features[usable], task, look.device), task, options
                )
                for protocol in options.protocols
            },
        }
        for row, (features, kept) in zip(rows, found, strict=True)
    ]
    multi = task.labels.ndim == 2
    if multi and (absent := _absent(images, task)):
        notes.append(f"no scored image has {', '.join(absent)}: no part in mAP")
    return {
        **provenance(images, look, options),
        "task": "several labels" if multi else "one label",
        "n": _scored_count(task),
        "split": _split_text(task),
        "rows": shown,
        "notes": list(dict.fromkeys(notes)),
    }


def table_rows(
    images: ImageSet,
    look: Look,
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str],
    notes: list[str],
) -> list[Row]:
    """The rows of a table, top to bottom.

    Raises:
        UsageError: an encoder that cannot be read or does not fit the set.
    """
    for name in baselines:
        if not name.startswith(PREFIX):
            raise UsageError(
                f"baseline {name!r} is not known: {PREFIX}NAME or {PREFIX}NAME@URI; TerraFM "
                "weights are named with --weights"
            )
    return [
        mean_spectrum_row(images, look),
        *(timm_row(name, images, look) for name in baselines),
        *weights_rows(weights, images, look, notes),
    ]


def provenance(images: ImageSet, look: Look, options: CompareOptions) -> dict[str, Any]:
    """What a reader of a result has to know, JSON-able."""
    return {
        "data": images.uri,
        "data_fingerprint": images.fingerprint,
        "classes": list(images.classes),
        "modalities": list(look.modalities),
        "bands": {modality: images.bands[modality] for modality in look.modalities},
        "image_size": look.size,
        "seed": options.seed,
        "resamples": options.resamples,
    }


def render(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    table = Table(
        title=f"{result['data']}: {result['n']} images, {len(result['classes'])} classes",
        caption="\n".join(
            [
                f"{result['split']}; images resized to {result['image_size']} pixels",
                f"[low, high]: 95 % bootstrap interval, {result['resamples']} draws, seed "
                f"{result['seed']}",
                *(f"{name}: {text}" for name, text in result["bands"].items()),
                *(f"{row['title']}: {row['seen']}" for row in result["rows"]),
                *result["notes"],
            ]
        ),
        caption_justify="left",
    )
    first = next(iter(result["rows"][0]["protocols"].values()))
    table.add_column("encoder", overflow="fold")
    table.add_column("protocol")
    for name in first["scores"]:
        table.add_column(_NAMES[name], justify="right")
    for row in result["rows"]:
        for at, (protocol, scored) in enumerate(row["protocols"].items()):
            cells = [_cell(score) for score in scored["scores"].values()]
            table.add_row("" if at else row["title"], _NAMES.get(protocol, protocol), *cells)
        table.add_section()
    return table


def _cell(score: dict[str, float]) -> str:
    return f"{score['value']:.1%} [{score['low']:.1%}, {score['high']:.1%}]".replace("%", "")


def _scored(outcome: Outcome, task: Task, options: CompareOptions) -> dict[str, Any]:
    labels, groups = task.labels[outcome.rows], task.groups[outcome.rows]
    draws: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    if labels.ndim == 1:
        scores = single_label_scores(outcome.predictions, labels, task.classes, groups, **draws)
    else:
        scores = multi_label_scores(outcome.predictions, labels, groups, **draws)
    return {"scores": as_dicts(scores), **outcome.details}


def _modalities(images: ImageSet, wanted: Sequence[str] | None) -> tuple[str, ...]:
    for name in wanted or ():
        if name not in images.modalities:
            raise UsageError(f"{images.uri} has {', '.join(images.modalities)}, not {name}")
    if wanted:
        return tuple(name for name in MODALITIES if name in wanted)
    return (next(name for name in _FIRST_CHOICE if name in images.modalities),)


def _check(images: LabelledSet, task: Task) -> None:
    scored = _test_rows(task)
    if task.labels.ndim == 1 and len(np.unique(task.labels)) < 2:
        raise UsageError(f"{images.uri}: the images that have the modality are of one class")
    if len(scored) < 2:
        raise UsageError(f"{images.uri}: {len(scored)} image is too few to score")


def _test_rows(task: Task) -> NDArray[np.int64]:
    return np.arange(len(task.labels)) if task.splits is None else task.rows("test")


def _scored_count(task: Task) -> int:
    return len(_test_rows(task))


def _absent(images: LabelledSet, task: Task) -> list[str]:
    counts = task.labels[_test_rows(task)].sum(0).tolist()
    return [name for name, count in zip(images.classes, counts, strict=True) if not count]


def _split_text(task: Task) -> str:
    if task.splits is not None:
        counts = ", ".join(
            f"{name} {int((task.splits == name).sum())}" for name in ("train", "valid", "test")
        )
        return f"the set's splits ({counts}), scored on test"
    places = len(np.unique(task.groups))
    out = "image" if places == len(task.labels) else "place"
    return (
        f"neighbours leave one {out} out; linear probe cross-validated in {min(FOLDS, places)} "
        "folds"
    )

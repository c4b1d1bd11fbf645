"""One table: the mean spectrum, an untrained encoder, the weights, and other encoders.

Every score stands with its 95 % bootstrap interval, and beside the table stands how it came
about: which band went where, whose normalisation, which splits, the seed.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import LabelledSet
from terrafm.eval.datasets.registry import check_labelled, open_set
from terrafm.eval.features.cache import cached_features, parts_uri
from terrafm.eval.features.encoders import Row
from terrafm.eval.features.job import forget_parts
from terrafm.eval.features.readouts import Readout
from terrafm.eval.finetune.classes import finetune_classes
from terrafm.eval.finetune.training import Tell, prefixed
from terrafm.eval.metrics import as_dicts, multi_label_scores, single_label_scores
from terrafm.eval.probes.protocols import CLASS_PROTOCOLS, FOLDS, PROTOCOLS, Outcome, Task, predict
from terrafm.eval.tables.common import (
    CompareOptions,
    averaged,
    check_protocols,
    provenance,
    table_rows,
    with_scores,
)
from terrafm.eval.tables.segmentation import compare_masks


def compare(
    data: str | os.PathLike[str],
    weights: Sequence[str | os.PathLike[str]] = (),
    baselines: Sequence[str] = (),
    options: CompareOptions | None = None,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Scores encoders on a labelled set, all by the same protocols.

    Args:
        data: URI of the set, with classes or with masks.
        weights: URIs of exported or released TerraFM weights.
        baselines: other encoders, `timm:NAME` or `timm:NAME@URI`.
        options: how.
        tell: receives, in a few words, what is being done.

    Returns:
        JSON-able: "rows" of {"title", "seen", "features", "protocols": protocol -> {"scores":
        metric -> {"value", "low", "high"}, ...}}, the untrained encoders as `averaged`; and how
        they came about.

    Raises:
        UsageError: an unreadable or unfit encoder, a protocol that does not fit, or a labelled set
            that does not exist, has no images or one class.
    """
    options = options or CompareOptions()
    check_protocols(options)
    return compare_opened(open_set(data, options.open), weights, baselines, options, tell)


def compare_opened(
    opened: Any,
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str],
    options: CompareOptions,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """As `compare`, of a set that `open_set` has opened."""
    if hasattr(opened, "mask"):
        if options.workers is not None:
            raise UsageError(f"{opened.uri} has masks: it is scored in one process, not --workers")
        if options.readout is not Readout.CLS:
            raise UsageError(f"{opened.uri} has masks: patch maps score it, there is no --readout")
        return compare_masks(opened, weights, baselines, options, tell)
    protocols = options.chosen(PROTOCOLS, CLASS_PROTOCOLS, f"{opened.uri} has classes")
    images = check_labelled(opened)
    notes: list[str] = []
    inputs = options.inputs(images)
    if "finetune" in protocols and inputs.readout is not Readout.CLS:
        raise UsageError(
            f"fine-tuning trains on the CLS token: --readout {inputs.readout.value} is for "
            "features that stay as they are"
        )
    rows = table_rows(images, inputs, weights, baselines, notes)
    found = [_features(row, images, options) for row in rows]
    # All rows of the table are scored on the same images: those that have the modality.
    usable = np.all([np.abs(features).sum(1) > 0 for features, _ in found], axis=0)
    if not usable.all():
        notes.append(f"{int((~usable).sum())} images lack {', '.join(inputs.modalities)}: left out")
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
    kept_rows = np.flatnonzero(usable)
    shown, tuned = [], set[str | None]()
    for row, (features, file) in zip(rows, found, strict=True):
        scored = {}
        for protocol in protocols:
            tell(f"{row.title}: {protocol}")
            if protocol != "finetune":
                outcome = predict(protocol, features[usable], task)
            elif row.encoder is not None and row.family not in tuned:
                # Of a family, one is enough: each is three trainings.
                tuned |= {row.family} - {None}
                outcome = finetune_classes(
                    row, images, kept_rows, task, row.inputs, options.epochs,
                    prefixed(tell, f"{row.title}: fine-tuning, "),
                )  # fmt: skip
            else:
                continue
            scored[protocol] = _scored(outcome, task, options)
        shown.append({"title": row.title, "seen": row.seen, "features": file, "protocols": scored})
    multi = task.labels.ndim == 2
    if multi and (absent := _absent(images, task)):
        notes.append(f"no scored image has {', '.join(absent)}: no part in mAP")
    return {
        **provenance(images, inputs, rows, options),
        "task": "several labels" if multi else "one label",
        "n": _scored_count(task),
        "split": _split_text(task),
        "rows": with_scores(averaged(rows, shown), protocols, notes),
        "notes": list(dict.fromkeys(notes)),
    }


def _features(
    row: Row, images: LabelledSet, options: CompareOptions
) -> tuple[NDArray[np.float32], str | None]:
    where = (options.features, row.title, row.depends_on, images)
    parts = parts_uri(*where)
    features, kept = cached_features(*where, lambda: row.compute(parts))
    if parts is not None:
        forget_parts(parts)
    return features, kept


def _scored(outcome: Outcome, task: Task, options: CompareOptions) -> dict[str, Any]:
    labels, groups = task.labels[outcome.rows], task.groups[outcome.rows]
    draws: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    if labels.ndim == 1:
        scores = single_label_scores(outcome.predictions, labels, task.classes, groups, **draws)
    else:
        scores = multi_label_scores(outcome.predictions, labels, groups, **draws)
    return {"scores": as_dicts(scores), **outcome.details}


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
        f"neighbours leave one {out} out; what is fitted is cross-validated in "
        f"{min(FOLDS, places)} folds"
    )

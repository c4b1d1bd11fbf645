"""What a trial is judged by: what its encoder is worth downstream, not its loss.

Losses at other temperatures or other numbers of prototypes are not comparable. So each checkpoint
of a trial is scored by nearest neighbours of frozen features on a labelled set, and balanced over
classes: archives are mostly forest and fields, and the paper's method is about the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from terrafm.config import Config
from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.probes.knn import evaluate_knn
from terrafm.export import export_checkpoint
from terrafm.modalities import FIRST_CHOICE
from terrafm.storage import join

MEASURES = {
    "balanced_accuracy": "mean over classes of the share found by kNN (k = 20)",
    "head_accuracy": "the same over the head: classes above 1 / classes of the labelled images",
    "tail_accuracy": "the same over the tail: all other classes",
    "overall_accuracy": "share of all labelled images found by kNN (k = 20)",
    "effective_rank": "of the teacher's features",
    "teacher_entropy": "of the teacher's distribution, nats",
}
"""Name of a measure -> what it is; all are better when larger, but the entropy."""

HEADLINES = ("balanced_accuracy", "head_accuracy", "tail_accuracy", "overall_accuracy")


def score_checkpoint(
    checkpoint: str, labelled: str, size: int, modalities: Sequence[str]
) -> dict[str, Any]:
    """The downstream measures of a checkpoint's teacher.

    Args:
        checkpoint: URI of a checkpoint folder.
        labelled: URI of the labelled set.
        size: side to which images are resized, pixels.
        modalities: that are scored, fused if several.

    Returns:
        `HEADLINES` (0..1), and `per_class` with n and accuracy of each class.

    Raises:
        UsageError, TerraFMError: as `evaluate_knn` and `export_checkpoint`.
    """
    with tempfile.TemporaryDirectory(prefix="terrafm-score-") as folder:
        weights, _ = export_checkpoint(checkpoint, join(folder, "weights"), "safetensors")
        result = evaluate_knn(
            weights[0],
            labelled,
            modalities=modalities,
            size=size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            # Neighbours cut from one grid cell look alike for being near.
            leave_out="cell" if len(np.unique(open_labelled(labelled).groups)) > 1 else "image",
            baselines=False,
        )
    return downstream(result)


def downstream(result: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of a result of `evaluate_knn`; those of an empty head or tail are missing."""
    per_class = result["per_class"]
    head = [n for n, row in per_class.items() if row["n"] * len(per_class) > result["n"]]
    parts = {"head_accuracy": head, "tail_accuracy": [n for n in per_class if n not in head]}
    return {
        "balanced_accuracy": float(result["balanced_knn20"]),
        "overall_accuracy": float(result["knn20"]),
        **{
            measure: float(np.mean([per_class[name]["knn20"] for name in names]))
            for measure, names in parts.items()
            if names
        },
        "per_class": {n: {"n": row["n"], "accuracy": row["knn20"]} for n, row in per_class.items()},
    }


def scored_modalities(config: Config, labelled: str) -> list[str]:
    """What checkpoints of a configuration are scored on: `tune.modalities`, or one sensor.

    Raises:
        UsageError: no labelled set there, or it lacks a modality that is wanted.
    """
    present = [m for m in open_labelled(labelled).modalities if m in config.data.modalities]
    wanted = config.tune.modalities or tuple(m for m in FIRST_CHOICE if m in present)[:1]
    missing = [m for m in wanted if m not in present]
    if missing or not wanted:
        raise UsageError(
            f"the labelled set {labelled} and data.modalities have "
            f"{', '.join(present) or 'nothing'} in common, not {', '.join(missing) or 'a sensor'}"
        )
    return list(wanted)


def titled(measure: str) -> str:
    """A measure's name for people."""
    return measure.replace("_", " ").capitalize()

"""Keys that earlier versions had: what they were set to in files that are still around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from terrafm.config.yaml_text import shortened
from terrafm.errors import UsageError


@dataclass(frozen=True)
class Removed:
    """A key that is no setting any more.

    Attributes:
        value: what it always is now.
        changes_result: whether a run with another value would have another result.
        instead: what to do in its place, where there is something.
    """

    value: Any
    changes_result: bool = False
    instead: str = ""


REMOVED = {
    "loss.mask_probability": Removed(0.5, True),
    "loss.mask_ratio": Removed([0.1, 0.5], True),
    "loss.high_frequency_center_momentum": Removed(None, True),
    "loss.high_frequency_threshold": Removed(
        1.0, True, "loss.high_frequency_classes names the classes"
    ),
    "data.aspect_ratio": Removed([3 / 4, 4 / 3], True),
    "data.local_scale": Removed([0.05, 0.25], True, "data.global_scale is that of global crops"),
    "data.prefetch_batches": Removed(2),
    "data.max_requests": Removed(64),
    "optim.betas": Removed([0.9, 0.999], True),
    "optim.min_lr": Removed(1e-6, True),
    "optim.warmup_fraction": Removed(0.1, True, "optim.warmup_epochs=0 leaves the warm-up out"),
    "optim.freeze_last_layer_fraction": Removed(0.1, True),
    "optim.freeze_last_layer_epochs": Removed(1.0, True),
    "train.overlap_transfers": Removed(True),
    "train.collect_garbage_every": Removed(50),
    "train.async_checkpoints": Removed(True),
    "train.max_failed_checkpoints": Removed(3),
    "train.max_skipped_steps": Removed(16),
    "train.keep_best": Removed(
        None, instead="validation.every_steps keeps the best checkpoint by a score"
    ),
    "train.keep_best_mode": Removed("min"),
    "ingest.seed": Removed(0, True),
    "validation.mode": Removed("max", instead="the metric decides which values are better"),
    "validation.size": Removed(None, instead="images have the side of data.global_size"),
    "tune.seed": Removed(0, True, "train.seed is that of the search too"),
    "tune.reduction_factor": Removed(3),
    "tune.grace_steps": Removed(None, instead="schedulers act at the first checkpoint"),
    "tune.evaluation_gpus": Removed(0.0, instead="validation.gpus is that of a sweep's scores too"),
}


def without_removed(
    tree: Mapping[str, Mapping[str, Any]], *, of_run: bool = False
) -> dict[str, dict[str, Any]]:
    """A tree without the keys of earlier versions.

    Args:
        tree: section -> key -> value, as written.
        of_run: it is what a run recorded: keys that changed no result may have had any value.

    Raises:
        UsageError: a key was given a value that it cannot have any more.
    """
    kept: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            kept[section] = values
            continue
        kept[section] = {
            key: value
            for key, value in values.items()
            if not _is_passed_over(f"{section}.{key}", value, of_run)
        }
    return kept


def _is_passed_over(key: str, value: Any, of_run: bool) -> bool:
    removed = REMOVED.get(key)
    if removed is None:
        return False
    plain = list(value) if isinstance(value, tuple) else value
    plain = None if plain == "none" else plain
    if plain == removed.value or (of_run and not removed.changes_result):
        return True
    advice = f": {removed.instead}" if removed.instead else ""
    raise UsageError(
        f"{key} is no setting any more, it is always {shortened(removed.value)}, not "
        f"{shortened(value)}{advice}"
    )

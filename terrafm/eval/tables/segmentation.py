"""The table of a set with masks: linear probe, UPerNet, fine-tuning."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import SegmentationSet
from terrafm.eval.features.cache import cached_features
from terrafm.eval.features.encoders import InputOptions, Row
from terrafm.eval.features.extraction import UNTRAINED_SEEDS
from terrafm.eval.finetune.masks import finetune_masks
from terrafm.eval.finetune.training import Tell, prefixed
from terrafm.eval.metrics import as_dicts, segmentation_scores
from terrafm.eval.probes.protocols import MASK_DEFAULTS, MASK_PROTOCOLS
from terrafm.eval.segmentation import linear, upernet
from terrafm.eval.segmentation.patch_maps import patch_maps, pyramid_blocks
from terrafm.eval.segmentation.probes import ProbeRecipe, fit_best, logits_of
from terrafm.eval.segmentation.task import MaskTask
from terrafm.eval.tables.common import CompareOptions, provenance, table_rows, with_scores
from terrafm.models.patch_embed import PATCH_SIZE


def compare_masks(
    images: SegmentationSet,
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str],
    options: CompareOptions,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Scores encoders on a set with masks.

    Args:
        images: the set, with splits.
        weights: URIs of exported or released TerraFM weights.
        baselines: other encoders; none is known that gives patch maps.
        options: how; by default by the linear probe.
        tell: receives what is being done.

    Returns:
        As `terrafm.eval.tables.compare.compare`.

    Raises:
        UsageError: no splits, an encoder that does not fit, or a protocol that is not for masks.
    """
    if baselines:
        raise UsageError(f"baseline {baselines[0]}: masks are scored for TerraFM weights only")
    protocols = options.chosen(MASK_DEFAULTS, MASK_PROTOCOLS, f"{images.uri} has masks")
    notes: list[str] = []
    inputs = options.inputs(images)
    task = MaskTask.of(images, inputs.device, options.seed)
    # Probes on maps are trained for each: one untrained encoder has to do.
    rows = table_rows(images, inputs, weights, (), notes, UNTRAINED_SEEDS[:1])
    if set(protocols) & {"upernet", "finetune"}:
        smallest = min(row.inputs.size for row in rows)
        upernet.check_upernet(smallest, len(task.splits["train"]))
    run = _Run(images, task, inputs, options, tell)
    shown = []
    for row in rows:
        scored, kept = {}, None
        for protocol in protocols:
            if protocol == "finetune" and row.encoder is None:
                continue
            confusions, details, file = run.of(protocol, row)
            kept = file or kept
            scores = segmentation_scores(
                confusions, images.groups[task.splits["test"]], ignore=images.ignore,
                resamples=options.resamples, seed=options.seed,
            )  # fmt: skip
            scored[protocol] = {"scores": as_dicts(scores), **details}
        shown.append({"title": row.title, "seen": row.seen, "features": kept, "protocols": scored})
    counts = ", ".join(f"{name} {len(found)}" for name, found in task.splits.items())
    if images.ignore is not None:
        notes.append(f"pixels of label {images.ignore} do not count")
    return {
        **provenance(images, inputs, rows, options),
        "task": "segmentation",
        "n": len(task.splits["test"]),
        "split": f"the set's splits ({counts}), scored on test",
        "rows": with_scores(shown, protocols, notes),
        "notes": list(dict.fromkeys(notes)),
    }


@dataclass(frozen=True)
class _Run:
    """What all rows and protocols of a table share."""

    images: SegmentationSet
    task: MaskTask
    inputs: InputOptions
    options: CompareOptions
    tell: Tell

    def of(self, protocol: str, row: Row) -> tuple[NDArray[np.int64], dict[str, Any], str | None]:
        """Confusions of the test images, what was chosen, and the file of features."""
        self.tell(f"{row.title}: {protocol}")
        if protocol == "finetune":
            tell = prefixed(self.tell, f"{row.title}: fine-tuning, ")
            epochs = self.options.epochs
            tuned = finetune_masks(row, self.images, self.task, row.inputs, epochs, tell)
            return *tuned, None
        return self._linear(row) if protocol == "linear" else self._upernet(row)

    def _linear(self, row: Row) -> tuple[NDArray[np.int64], dict[str, Any], str | None]:
        maps, file = self._maps(row, 1)
        mean, scale = _spread(maps[torch.from_numpy(self.task.splits["train"]), 0])
        build = partial(linear.PatchProbe, mean, scale, self.task.classes)
        confusions, details = self._probed(build, maps, linear.RECIPE)
        return confusions, details, file

    def _upernet(self, row: Row) -> tuple[NDArray[np.int64], dict[str, Any], str | None]:
        maps, file = self._maps(row, upernet.LEVELS)
        build = partial(upernet.UPerNet, maps.shape[2], self.task.classes)
        recipe = upernet.recipe(self.options.epochs)
        confusions, details = self._probed(build, maps, recipe)
        details["epochs"] = recipe.epochs
        if row.encoder is not None:
            details["blocks"] = list(pyramid_blocks(len(row.encoder.blocks)))
        return confusions, details, file

    def _probed(
        self, build: Callable[[], nn.Module], maps: Tensor, recipe: ProbeRecipe
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        fitted = fit_best(build, maps, self.task, recipe)
        predict = logits_of(fitted.probe, maps, self.inputs.device)
        confusions, _ = self.task.evaluate(predict, self.task.splits["test"])
        return confusions, {"learning_rate": fitted.learning_rate}

    def _maps(self, row: Row, levels: int) -> tuple[Tensor, str | None]:
        """(N, L, D, h, w), and where they are kept."""
        depends_on = {**row.depends_on, "dense": True, "size": row.inputs.size}
        if levels > 1:
            depends_on["levels"] = levels
        flat, file = cached_features(
            self.options.features, f"dense {row.title}", depends_on, self.images,
            partial(patch_maps, row, self.images, row.inputs, levels),
        )  # fmt: skip
        side = row.inputs.size // PATCH_SIZE
        return torch.from_numpy(flat.reshape(len(flat), levels, -1, side, side)), file


def _spread(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(D, 1, 1) mean and standard deviation of (N, D, h, w) maps."""
    spread = maps.std((0, 2, 3), correction=0)[:, None, None]
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    return maps.mean((0, 2, 3))[:, None, None], scale

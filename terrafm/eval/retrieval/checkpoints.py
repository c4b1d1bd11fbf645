"""Retrieval as the metrics of a run's checkpoints: one encoder, different parts of the tile.

The numbers are those of `terrafm evaluate retrieval` in its row of the weights. Baselines and
intervals are left out: they would be computed anew for every checkpoint, at six times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import Normalisation
from terrafm.eval.features.readouts import Readout
from terrafm.eval.retrieval.evaluate import tasks_of
from terrafm.eval.retrieval.scores import DEPTHS, MEDIAN, SHIFTED, encoder_ranks, plain_metrics
from terrafm.eval.retrieval.tasks import Task, draw_places
from terrafm.eval.retrieval.views import sensor_views
from terrafm.models.encoder import Encoder

PREFIX = "retrieval/"
_METRICS = (*DEPTHS, MEDIAN)


@dataclass(frozen=True)
class RetrievalSample:
    """The tiles that every checkpoint of a run is scored on, and what is looked for among them.

    Attributes:
        images: the whole dataset.
        modalities: sensors, each by itself.
        rows: (N,) tiles drawn.
        places: (N,) number of each one's place.
        tasks: at least one.
    """

    images: ShardTiles
    modalities: tuple[str, ...]
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    tasks: tuple[Task, ...]

    @classmethod
    def draw(cls, images: ShardTiles, modalities: Sequence[str], most: int) -> RetrievalSample:
        """Draws whole places, always the same; reads no pixel.

        Args:
            images: a dataset of ingest.
            modalities: sensors to use, which it has.
            most: tiles; the last place drawn may exceed it.

        Raises:
            UsageError: none of these tiles has a partner.
        """
        rows = draw_places(images.places, most)
        tasks, places = tasks_of(images, modalities, rows)
        return cls(images, tuple(modalities), rows, places, tuple(tasks))

    def metric_names(self) -> list[str]:
        """Names of the metrics that `measure` gives."""
        return [f"{PREFIX}{task_title(task)}/{m}" for task in self.tasks for m in _METRICS]

    def counts(self) -> dict[str, dict[str, int]]:
        """Task -> n, its queries, and candidates among which each partner is looked for."""
        return {
            task_title(task): {"n": len(task.query_rows), "candidates": len(task.gallery_rows)}
            for task in self.tasks
        }


def task_title(task: Task) -> str:
    """A task's name without `>`, such as "s1-to-s2_l2a" or "s2_l2a-to-later".

    MLflow refuses `>` in the name of a metric, and a shell takes it for a redirection.
    """
    return task.name.replace(">", "-to-")


def measure_retrieval(
    encoder: Encoder,
    sample: RetrievalSample,
    normalisation: Normalisation,
    *,
    size: int,
    batch: int,
    device: torch.device,
) -> dict[str, float | None]:
    """Recall (0..1) at each depth and median rank (from 1) of every task, by the CLS token.

    Args:
        encoder: in eval mode.
        sample: the tiles.
        normalisation: mean and std per modality.
        size: side of a cut, pixels.
        batch: tiles at once.
        device: where to compute.

    Returns:
        A value for each of `RetrievalSample.metric_names`; None where features are not finite.

    Raises:
        TerraFMError: a tile cannot be read.
    """
    views = sensor_views(
        [encoder],
        sample.images,
        sample.modalities,
        normalisation,
        readout=Readout.CLS,
        size=size,
        batch=batch,
        device=device,
        rows=sample.rows.tolist(),
    )
    finite = {name: bool(np.isfinite(view.features[0]).all()) for name, view in views.items()}
    metrics: dict[str, float | None] = {}
    for task in sample.tasks:
        values: dict[str, Any] = dict.fromkeys(_METRICS)
        if finite[task.query] and finite[task.gallery]:
            values = plain_metrics(encoder_ranks(task, views, sample.places, 0, SHIFTED))
        metrics |= {f"{PREFIX}{task_title(task)}/{name}": values[name] for name in _METRICS}
    return metrics

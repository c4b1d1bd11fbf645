"""How well encoders find a place again, beside fresh encoders and the statistics of the bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.eval.features.extraction import UNTRAINED_SEEDS, Normalisation, untrained_like
from terrafm.eval.features.readouts import Readout
from terrafm.eval.retrieval.evaluate import open_tiles, tasks_of
from terrafm.eval.retrieval.ranks import Ranks, centred, standardised
from terrafm.eval.retrieval.scores import (
    ALIGNED,
    CHANCE,
    SHIFTED,
    UNTRAINED,
    Bootstrap,
    baseline_ranks,
    encoder_ranks,
    score,
)
from terrafm.eval.retrieval.tasks import LATER, Task, draw_places
from terrafm.eval.retrieval.views import SensorViews, sensor_views
from terrafm.models.contract import WeightsContract
from terrafm.models.encoder import Encoder

HOW = (SHIFTED, ALIGNED)
SAME = "same date"
Rows = dict[str, list[Ranks]]


class FoundAgain:
    """Scores encoders by retrieval on all tiles of a dataset.

    Beside the tasks of `terrafm evaluate retrieval` there is "s2_l1c>same date" for each of
    "s2_l1c>later": the queries, found among the other cuts of their own date. Nothing has changed
    there, so it bounds what can be found at the other date.

    Args:
        uri: of a dataset of ingest.
        model: architecture of the untrained encoders.
        modalities: sensors.
        normalisation: mean and std that the encoders were trained with.
        size: side of the cuts, pixels.
        readout: of the encoders.

    Attributes:
        tasks: names.
    """

    def __init__(
        self,
        uri: str,
        model: str,
        modalities: Sequence[str],
        normalisation: Normalisation,
        *,
        size: int,
        readout: Readout = Readout.CLS,
    ) -> None:
        self._images = open_tiles(uri)
        self._modalities = modalities
        self._normalisation = normalisation
        self._size = size
        self._readout = readout
        self._rows = draw_places(self._images.places, len(self._images.places))
        tasks, self._places = tasks_of(self._images, modalities, self._rows)
        tasks += [same_date(task) for task in tasks if task.name.endswith(f">{LATER}")]
        self._tasks = {task.name: task for task in tasks}
        self.tasks = tuple(self._tasks)
        fresh = [untrained_like(model, seed) for seed in UNTRAINED_SEEDS]
        self._fresh_views = self._views(fresh)
        self._fresh = self._ranks(self._fresh_views, len(fresh))

    def ranks(self, encoders: Sequence[Encoder]) -> dict[tuple[str, str], list[Ranks]]:
        """Of each encoder: (task, how its partner was cut) -> ranks."""
        modes = [encoder.training for encoder in encoders]
        views = self._views([encoder.eval() for encoder in encoders])
        for encoder, mode in zip(encoders, modes, strict=True):
            encoder.train(mode)
        return self._ranks(views, len(encoders))

    def baselines(self, task: str, how: str) -> Rows:
        """Rows of what has not learned anything: fresh encoders, statistics of bands, chance."""
        fresh = self._fresh[task, how]
        plain = baseline_ranks(self._tasks[task], self._fresh_views, self._places, how)
        chance = fresh[0].chance()
        return {UNTRAINED: fresh, **{n: [r] for n, r in plain.items()}, CHANCE: [chance]}

    def names(self, task: str) -> NDArray[np.str_]:
        """(Q,) tile ids of a task's queries."""
        return np.array([self._images.names[row] for row in self._tasks[task].query_rows])

    def score(self, task: str, rows: Mapping[str, Sequence[Ranks]]) -> dict[str, Any]:
        """See `terrafm.eval.retrieval.scores.score`; rows of one task."""
        places = self._places[self._tasks[task].query_rows]
        return score(rows, Bootstrap.of(places))

    def _ranks(
        self, views: Mapping[str, SensorViews], count: int
    ) -> dict[tuple[str, str], list[Ranks]]:
        unit = standardised if self._readout is Readout.MEAN_STD else centred
        return {
            (name, how): [
                encoder_ranks(task, views, self._places, number, how, unit)
                for number in range(count)
            ]
            for name, task in self._tasks.items()
            for how in HOW
        }

    def _views(self, encoders: Sequence[Encoder]) -> dict[str, SensorViews]:
        return sensor_views(
            encoders,
            self._images,
            self._modalities,
            self._normalisation,
            readout=self._readout,
            size=self._size,
            batch=64,
            device=torch.device("cpu"),
            rows=self._rows.tolist(),
        )


def same_date(task: Task) -> Task:
    """The queries of a task at another date, looked for among themselves."""
    return Task(
        f"{task.query}>{SAME}",
        task.query,
        task.query,
        task.query_rows,
        task.query_rows,
        np.arange(len(task.query_rows)),
    )


def normalisation_of(contract: WeightsContract) -> dict[str, Any]:
    """Mean and std of each sensor that weights were trained with, as `FoundAgain` takes them."""
    return {m: {"mean": c.mean, "std": c.std} for m, c in contract.modalities.items()}

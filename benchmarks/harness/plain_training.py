"""A pretraining in one plain process, scored on the way: neither Ray nor DeepSpeed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from terrafm.data.samples.loader import make_batches
from terrafm.eval.features import UNTRAINED_SEEDS, Normalisation, untrained_like
from terrafm.eval.readouts import Readout
from terrafm.eval.retrieval.evaluate import open_tiles, tasks_of
from terrafm.eval.retrieval.ranks import Ranks, centred, standardised
from terrafm.eval.retrieval.scores import (
    SHIFTED,
    UNTRAINED,
    WEIGHTS,
    Bootstrap,
    baseline_ranks,
    encoder_ranks,
    score,
)
from terrafm.eval.retrieval.tasks import draw_places
from terrafm.eval.retrieval.views import sensor_views
from terrafm.models.encoder import Encoder
from terrafm.train.setup import TrainingSetup


@dataclass(frozen=True)
class Reached:
    """A point of a training.

    Attributes:
        step: finished steps.
        seconds: since the first step began, scoring left out.
        teacher: the teacher's encoder; it goes on to change with the training.
        line: what the last step said of itself.
    """

    step: int
    seconds: float
    teacher: Encoder
    line: dict[str, float]


def train(setup: TrainingSetup, every: int) -> Iterator[Reached]:
    """Trains to the configured last step, and stops on the way each so many steps.

    Raises:
        SystemExit: a step was not finite.
    """
    distillation = setup.plain_distillation()
    layout = setup.layout(0, 1)
    batches = make_batches(**setup.stream_options(layout, 0))
    seconds = 0.0
    for step in range(setup.total_steps):
        began = time.perf_counter()
        settings = setup.schedules.at(step)
        micro = list(itertools.islice(batches, layout.n_micro))
        statistics = distillation.forward_backward(micro, settings)
        applied, norm = distillation.finish(settings)
        seconds += time.perf_counter() - began
        if not applied:
            raise SystemExit(f"step {step} was not finite")
        done = step + 1
        if done % every == 0 or done == setup.total_steps:
            rank = distillation.teacher_features.effective_rank()
            line = statistics.means() | {"grad_norm": norm, "effective_rank": rank or 0.0}
            yield Reached(done, seconds, distillation.teacher.encoder, line)


class Retrieval:
    """Scores encoders by retrieval on a dataset of ingest, against fresh ones and band statistics.

    Args:
        uri: of the dataset, with places seen at several dates.
        model: architecture of the untrained encoders.
        modalities: sensors.
        normalisation: mean and std that the encoders were trained with.
        size: side of the cuts, pixels.
        readout: of the encoders.
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
        self._tasks, self._places = tasks_of(self._images, modalities, self._rows)
        untrained = [untrained_like(model, seed) for seed in UNTRAINED_SEEDS]
        self._baselines = self._views(untrained)

    def _views(self, encoders: Sequence[Encoder]) -> Any:
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

    def scores(self, encoder: Encoder) -> dict[str, Mapping[str, Any]]:
        """Task -> how the partner was cut -> `retrieval.scores.score`."""
        training = encoder.training
        own = self._views([encoder.eval()])
        encoder.train(training)
        unit = standardised if self._readout is Readout.MEAN_STD else centred
        found: dict[str, Mapping[str, Any]] = {}
        for task in self._tasks:
            bootstrap = Bootstrap.of(self._places[task.query_rows])
            found[task.name] = {}
            for how in (SHIFTED, "aligned"):
                fresh = [
                    encoder_ranks(task, self._baselines, self._places, seed, how, unit)
                    for seed in range(len(UNTRAINED_SEEDS))
                ]
                rows: dict[str, list[Ranks]] = {
                    UNTRAINED: fresh,
                    WEIGHTS: [encoder_ranks(task, own, self._places, 0, how, unit)],
                }
                plain = baseline_ranks(task, self._baselines, self._places, how)
                rows |= {name: [ranks] for name, ranks in plain.items()}
                found[task.name] = {**found[task.name], how: score(rows, bootstrap)}
        return found

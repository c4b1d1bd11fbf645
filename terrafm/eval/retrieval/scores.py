"""Recall and median rank of one task, with intervals over places and gains over baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.eval.metrics import CONFIDENCE, RESAMPLES, Interval, resampled_rows
from terrafm.eval.retrieval.ranks import Ranks, centred, partner_ranks, standardised
from terrafm.eval.retrieval.tasks import Task
from terrafm.eval.retrieval.views import SensorViews
from terrafm.modalities import MODALITIES

DEPTHS = {"recall1": 1, "recall5": 5, "recall10": 10}
MEDIAN = "median_rank"
WEIGHTS, UNTRAINED, CHANCE = "weights", "untrained", "chance"
MEAN_SPECTRUM, DEVIATION = "mean_spectrum", "mean_and_deviation"
# Where the two sides are cut from: different parts of the tile, or the same.
SHIFTED, ALIGNED = "shifted", "aligned"
_GALLERY_CUT = {SHIFTED: 1, ALIGNED: 0}

Unit = Callable[[NDArray[np.floating]], NDArray[np.float64]]
Draws = dict[str, NDArray[np.float64]]


def encoder_ranks(
    task: Task,
    views: Mapping[str, SensorViews],
    places: NDArray[np.int64],
    encoder: int,
    how: str,
    unit: Unit = centred,
) -> Ranks:
    """Ranks of one encoder's features.

    Args:
        task: what is looked for.
        views: modality -> views of all tiles.
        places: (N,) number of each tile's place.
        encoder: its number among those of the views.
        how: `SHIFTED` or `ALIGNED`.
        unit: makes rows comparable, each side by itself.
    """
    sides = [views[name].features[encoder] for name in (task.query, task.gallery)]
    return _ranks(task, places, sides[0], sides[1], how, unit)


def baseline_ranks(
    task: Task, views: Mapping[str, SensorViews], places: NDArray[np.int64], how: str
) -> dict[str, Ranks]:
    """Ranks of what needs no encoder, where both sides share bands: mean, and mean with deviation.

    Every number is standardised over its side.

    Args:
        task: as in `encoder_ranks`.
        views: as there.
        places: as there.
        how: as there.
    """
    names = [MODALITIES[name].bands for name in (task.query, task.gallery)]
    shared = [band for band in names[0] if band in names[1]]
    if not shared:
        return {}
    means, both = [], []
    for modality, bands in zip((task.query, task.gallery), names, strict=True):
        at = [bands.index(band) for band in shared]
        view = views[modality]
        means.append(view.means[..., at])
        both.append(np.concatenate([view.means[..., at], view.deviations[..., at]], axis=-1))
    return {
        MEAN_SPECTRUM: _ranks(task, places, means[0], means[1], how, standardised),
        DEVIATION: _ranks(task, places, both[0], both[1], how, standardised),
    }


def _ranks(
    task: Task,
    places: NDArray[np.int64],
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    how: str,
    unit: Unit,
) -> Ranks:
    return partner_ranks(
        unit(query[0, task.query_rows]),
        unit(gallery[_GALLERY_CUT[how], task.gallery_rows]),
        task.partners,
        places[task.query_rows],
        places[task.gallery_rows],
    )


def plain_metrics(ranks: Ranks) -> dict[str, float]:
    """Recall (0..1) and median rank, without intervals."""
    return {name: float(values.mean()) for name, values in _hits(ranks).items()} | {
        MEDIAN: float(np.median(ranks.middle()))
    }


@dataclass(frozen=True)
class Bootstrap:
    """Draws of a task's queries, whole places at a time, the same for every row of a table.

    Attributes:
        rows: (R, M) drawn queries, -1 behind the end of a draw.
    """

    rows: NDArray[np.int64]

    @classmethod
    def of(cls, places: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
        """Of (Q,) places of the queries."""
        return cls(resampled_rows(places, resamples, seed))

    def draws(self, several: Sequence[Ranks]) -> Draws:
        """(R,) values of each metric, mean over several encoders, such as untrained seeds."""
        each = [self._draws(ranks) for ranks in several]
        return {name: np.mean([draws[name] for draws in each], axis=0) for name in each[0]}

    def _draws(self, ranks: Ranks) -> Draws:
        drawn = self.rows >= 0
        count = drawn.sum(1)
        found = {
            name: np.where(drawn, values[self.rows], 0.0).sum(1) / count
            for name, values in _hits(ranks).items()
        }
        middle = np.where(drawn, ranks.middle()[self.rows], np.nan)
        return found | {MEDIAN: np.nanmedian(middle, axis=1)}


def score(rows: Mapping[str, Sequence[Ranks]], bootstrap: Bootstrap) -> dict[str, Any]:
    """The rows of one task, and what `WEIGHTS` gain over the best of the others.

    Args:
        rows: name -> ranks of one encoder, or of several whose mean is shown.
        bootstrap: draws of the queries.

    Returns:
        JSON-able: "rows" of name -> metric -> {"value", "low", "high"} (recall 0..1), with
        "spread" (deviation over several encoders) where there are several; "gain" of metric ->
        {"over": the best baseline, "value", "low", "high"}, paired by draw; above 0 is better,
        for the median rank too.
    """
    values = {name: _mean_metrics(several) for name, several in rows.items()}
    draws = {name: bootstrap.draws(several) for name, several in rows.items()}
    shown = {
        name: {m: _interval(values[name][m], draws[name][m]) for m in values[name]} for name in rows
    }
    for name, several in rows.items():
        if len(several) > 1:
            spread = np.std([list(plain_metrics(r).values()) for r in several], axis=0, ddof=1)
            for metric, deviation in zip(values[name], spread.tolist(), strict=True):
                shown[name][metric]["spread"] = deviation
    gain = {}
    for metric in values[WEIGHTS]:
        sign = -1.0 if metric == MEDIAN else 1.0
        others = [name for name in rows if name != WEIGHTS]
        best = max(others, key=lambda name: sign * values[name][metric])
        difference = sign * (values[WEIGHTS][metric] - values[best][metric])
        drawn = sign * (draws[WEIGHTS][metric] - draws[best][metric])
        gain[metric] = {"over": best, **_interval(difference, drawn)}
    return {"rows": shown, "gain": gain}


def _hits(ranks: Ranks) -> dict[str, NDArray[np.float64]]:
    return {name: ranks.hits(depth) for name, depth in DEPTHS.items()}


def _mean_metrics(several: Sequence[Ranks]) -> dict[str, float]:
    each = [plain_metrics(ranks) for ranks in several]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _interval(value: float, draws: NDArray[np.float64]) -> dict[str, Any]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high)).as_dict()

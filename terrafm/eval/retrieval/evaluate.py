"""`terrafm evaluate retrieval`: does an encoder find a place again, by another sensor or date?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.datasets.compatibility import modality_choices, normalisation_for
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import UNTRAINED_SEEDS, input_side, untrained_like
from terrafm.eval.features.readouts import Readout
from terrafm.eval.metrics import RESAMPLES
from terrafm.eval.retrieval.ranks import Ranks, centred, standardised
from terrafm.eval.retrieval.scores import (
    ALIGNED,
    CHANCE,
    DEPTHS,
    DEVIATION,
    MEAN_SPECTRUM,
    MEDIAN,
    SHIFTED,
    UNTRAINED,
    WEIGHTS,
    Bootstrap,
    baseline_ranks,
    encoder_ranks,
    score,
)
from terrafm.eval.retrieval.tasks import Task, draw_places, make_tasks
from terrafm.eval.retrieval.views import SensorViews, sensor_views
from terrafm.models.encoder import Encoder
from terrafm.models.weights import infer_model_name, load_encoder
from terrafm.storage import check_exists

SAMPLES = 2000
_TITLES = {
    CHANCE: "chance",
    MEAN_SPECTRUM: "mean spectrum",
    DEVIATION: "mean and deviation",
    UNTRAINED: f"untrained, {len(UNTRAINED_SEEDS)} seeds",
    WEIGHTS: "these weights",
}

# In the terminal; JSON has all.
_SHOWN = ("recall1", "recall10")


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieval is scored.

    Attributes:
        modalities: sensors to use; by default all that weights and dataset share.
        readout: which numbers of the encoder are the embedding.
        size: side of the cuts, pixels; by default that of the weights' contract.
        samples: most tiles, whole places drawn by a fixed rule.
        batch: tiles at once.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        by_set: normalise by the dataset's statistics, not by those that the weights state.
        seed: of the bootstrap.
        resamples: bootstrap draws.
    """

    modalities: Sequence[str] | None = None
    readout: Readout = Readout.CLS
    size: int | None = None
    samples: int = SAMPLES
    batch: int = 32
    device: str | None = None
    by_set: bool = False
    seed: int = 0
    resamples: int = RESAMPLES


def evaluate_retrieval(
    weights: str | os.PathLike[str],
    data: str | os.PathLike[str],
    options: RetrievalOptions | None = None,
) -> dict[str, Any]:
    """Scores weights by whether they find the partner of a tile; no label is used.

    The query is the upper left two thirds of a tile; its partner, the lower right two thirds of
    the same ground, by another sensor or at another date, is looked for among those of all tiles.

    Args:
        weights: URI of exported or released weights.
        data: URI of a dataset made by ingest.
        options: how.

    Returns:
        JSON-able: "tasks" of {"task", "query", "gallery", "n", "places", "candidates", "shifted",
        "aligned"}, the last two as `scores.score` gives them; and how they came about.

    Raises:
        UsageError: unreadable weights, no dataset of ingest, nothing in common, or no tile that
            has two sensors or dates and another beside it.
        TerraFMError: features that are not finite, or a tile that cannot be read.
    """
    options = options or RetrievalOptions()
    images = open_tiles(data)
    encoder = load_encoder(weights)
    name = infer_model_name(encoder.state_dict(), os.fspath(weights))
    notes: list[str] = []
    modalities = _sensors(encoder, images, options.modalities)
    normalisation, source = normalisation_for(
        encoder, images, modalities, notes, by_set=options.by_set
    )
    rows = draw_places(images.places, options.samples)
    if len(rows) < len(images.places):
        notes.append(f"{len(rows)} of {len(images.places)} tiles, whole places drawn at random")
    tasks, places = tasks_of(images, modalities, rows)
    size = input_side(encoder, options.size)
    encoders = [encoder, *(untrained_like(name, seed, modalities) for seed in UNTRAINED_SEEDS)]
    views = sensor_views(
        encoders,
        images,
        modalities,
        normalisation,
        readout=options.readout,
        size=size,
        batch=options.batch,
        device=torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        rows=rows.tolist(),
    )
    check_finite(views, os.fspath(weights))
    return {
        "tasks": [_scored(task, views, places, options) for task in tasks],
        "model": name,
        "weights": os.fspath(weights),
        "data": images.uri,
        "data_fingerprint": images.fingerprint,
        "tiles": len(rows),
        "modalities": list(modalities),
        "readout": options.readout.value,
        "image_size": size,
        "normalisation": source,
        "untrained_seeds": list(UNTRAINED_SEEDS),
        "resamples": options.resamples,
        "seed": options.seed,
        "notes": notes,
    }


def open_tiles(data: str | os.PathLike[str]) -> ShardTiles:
    """Opens a dataset of ingest.

    Raises:
        UsageError: it is none.
    """
    uri = os.fspath(data).rstrip("/")
    check_exists("dataset", uri)
    return ShardTiles(uri)


def tasks_of(
    images: ShardTiles, modalities: Sequence[str], rows: NDArray[np.int64]
) -> tuple[list[Task], NDArray[np.int64]]:
    """The tasks of some tiles, and the number of each one's place.

    Raises:
        UsageError: there is none.
    """
    available = {m: images.available(m)[rows] for m in modalities}
    places = images.places[rows]
    repeated = len(np.unique(places)) < len(places)
    times = images.times(rows.tolist(), modalities) if repeated else {}
    tasks = make_tasks(available, places, times)
    if not tasks:
        raise UsageError(
            f"{images.uri}: no tile has two of {', '.join(modalities)}, and no place was seen "
            "twice, beside another tile: there is nothing to retrieve"
        )
    return tasks, places


def check_finite(views: dict[str, SensorViews], weights: str) -> None:
    """Refuses features that cannot be ranked.

    Raises:
        TerraFMError: names the weights.
    """
    for modality, found in views.items():
        if not all(np.isfinite(features).all() for features in found.features):
            raise TerraFMError(f"{weights}: features of {modality} are NaN or infinite")


def _sensors(encoder: Encoder, images: ShardTiles, wanted: Sequence[str] | None) -> tuple[str, ...]:
    chosen = [modality_choices(encoder, images, [name], [])[0] for name in wanted or ()]
    if not wanted:
        chosen = [c for c in modality_choices(encoder, images, None, []) if len(c) == 1]
    return tuple(dict.fromkeys(name for choice in chosen for name in choice))


def _scored(
    task: Task,
    views: dict[str, SensorViews],
    places: NDArray[np.int64],
    options: RetrievalOptions,
) -> dict[str, Any]:
    unit = standardised if options.readout is Readout.MEAN_STD else centred
    asked = places[task.query_rows]
    bootstrap = Bootstrap.of(asked, options.resamples, options.seed)
    found: dict[str, Any] = {}
    for how in (SHIFTED, ALIGNED):
        own, *fresh = (
            encoder_ranks(task, views, places, number, how, unit)
            for number in range(1 + len(UNTRAINED_SEEDS))
        )
        rows: dict[str, list[Ranks]] = {CHANCE: [own.chance()]}
        rows |= {n: [r] for n, r in baseline_ranks(task, views, places, how).items()}
        rows |= {UNTRAINED: fresh, WEIGHTS: [own]}
        found[how] = score(rows, bootstrap)
    return {
        "task": task.name,
        "query": task.query,
        "gallery": task.gallery,
        "n": len(task.query_rows),
        "places": len(np.unique(asked)),
        "candidates": len(task.gallery_rows),
        **found,
    }


def render(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    table = Table(
        title=f"{result['data']}: {result['tiles']} tiles, retrieval by {result['model']}",
        caption="\n".join(
            [
                "query: upper left two thirds of a tile; partner: lower right two thirds "
                "(aligned: the same part as the query)",
                f"cuts of {result['image_size']} pixels; readout {result['readout']}; "
                f"normalisation: {result['normalisation']}",
                "recall in percent, [low, high]: 95 % bootstrap interval over places, "
                f"{result['resamples']} draws, seed {result['seed']}",
                "gain: over the best other row, paired",
                *result["notes"],
            ]
        ),
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for name in (*(f"@{DEPTHS[metric]}" for metric in _SHOWN), "median rank", "aligned @1"):
        table.add_column(name, justify="right")
    for task in result["tasks"]:
        shifted, aligned = task[SHIFTED], task[ALIGNED]
        table.add_row(f"{task['task']}, {task['n']} among {task['candidates']}", style="bold")
        for name, title in _TITLES.items():
            if name in shifted["rows"]:
                table.add_row(title, *_cells(shifted["rows"][name], aligned["rows"][name]))
        table.add_row("gain", *_cells(shifted["gain"], aligned["gain"]), style="bold")
        table.add_section()
    return table


def _cells(shifted: dict[str, Any], aligned: dict[str, Any]) -> list[str]:
    percent = [*(shifted[metric] for metric in _SHOWN), aligned["recall1"]]
    cells = [_cell(row, 100) for row in percent]
    return [*cells[:-1], _cell(shifted[MEDIAN], 1), cells[-1]]


def _cell(row: dict[str, Any], scale: int) -> str:
    value, low, high = (scale * row[name] for name in ("value", "low", "high"))
    return f"{value:.1f}\n[{low:.1f}, {high:.1f}]"

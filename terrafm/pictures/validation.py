"""A picture of a run's validations: how the encoder gets on, and which checkpoint is the best."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from terrafm.errors import UsageError
from terrafm.eval.retrieval.tasks import LATER
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.figure import SAFE_COLOURS, picture
from terrafm.train.checkpoints.best import Best, read_best
from terrafm.train.checkpoints.validations import read_validations
from terrafm.train.run_folder import RunFolder

_CURVES = {**SENSOR_TITLES, "fused": "all fused"}
_MARKERS = "os^Dvp"
_RETRIEVAL = re.compile(r"retrieval/(.+)-to-(.+)/recall10")
_COLUMNS = 2
# Inches; below the plots the legend and a line of notes.
_WIDTH, _ROW_HEIGHT = 9.5, 3.1
_FOOT, _LEGEND_AT, _NOTES_AT = 0.56, 0.22, 0.07


@dataclass(frozen=True)
class _Panel:
    """One plot.

    Attributes:
        title: of it.
        curves: name of the metric -> label.
        is_share: its values are 0..1.
        own_legend: its labels are not those of the figure's legend.
    """

    title: str
    curves: Mapping[str, str]
    is_share: bool
    own_legend: bool


def validation_curve(run_folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws over the steps what the run was validated by.

    Of kNN its accuracy, that of the rare classes, effective rank and uniformity; of retrieval
    recall@10 of every pair of sensors, and of dates.

    Args:
        run_folder: URI of the run.
        path: URI of the PNG.

    Raises:
        UsageError: the run has no validation, or one of its own that knows other metrics.
    """
    uri = os.fspath(run_folder).rstrip("/")
    lines = read_validations(uri)
    if not lines:
        raise UsageError(f"{RunFolder(uri).validation} does not exist or holds no validation")
    best = read_best(RunFolder(uri).checkpoints)
    panels = _panels(dict.fromkeys(name for line in lines for name in line["metrics"]))
    if not panels:
        raise UsageError(f"{RunFolder(uri).validation} holds scores neither of kNN nor retrieval")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = rows * _ROW_HEIGHT
    with picture(path, (_WIDTH, height)) as figure:
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            _draw(axis, lines, panel, best)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[: len(panels)][-columns:]:
            axis.set_xlabel("step")
            # Above an empty place the numbers of the shared axis would be missing.
            axis.tick_params(labelbottom=True)
        figure.tight_layout(rect=(0, _FOOT / height, 1, 1))
        axis = next((a for a, p in zip(axes, panels, strict=False) if not p.own_legend), None)
        if axis is not None:
            handles, labels = axis.get_legend_handles_labels()
            place = (0.5, _LEGEND_AT / height)
            figure.legend(handles, labels, loc="lower center", bbox_to_anchor=place, ncols=4)
        notes = "     ".join(_notes(lines, best))
        figure.text(0.5, _NOTES_AT / height, notes, ha="center", fontsize=8, color="#555555")


def _panels(metrics: Collection[str]) -> list[_Panel]:
    """The panels for which there are metrics."""
    neighbours = (
        ("kNN accuracy, k = 20", "knn20/{}/accuracy", True),
        ("kNN accuracy of the rare classes", "knn20/{}/tail_accuracy", True),
        ("Effective rank (directions)", "effective_rank/{}", False),
        ("Uniformity (lower is more even)", "uniformity/{}", False),
    )
    panels = [
        _Panel(title, {key.format(name): label for name, label in _CURVES.items()}, is_share, False)
        for title, key, is_share in neighbours
    ]
    pairs = {name: found.groups() for name in metrics if (found := _RETRIEVAL.fullmatch(name))}
    titles = {name: SENSOR_TITLES.get(query, query) for name, (query, _) in pairs.items()}
    sensors = {
        name: f"{titles[name]} to {SENSOR_TITLES.get(gallery, gallery)}"
        for name, (_, gallery) in pairs.items()
        if gallery != LATER
    }
    dates = {name: titles[name] for name, (_, gallery) in pairs.items() if gallery == LATER}
    panels += [
        _Panel("Recall@10 by another sensor", sensors, True, True),
        _Panel("Recall@10 at a later date", dates, True, True),
    ]
    return [panel for panel in panels if not panel.curves.keys().isdisjoint(metrics)]


def _notes(lines: Sequence[Mapping[str, Any]], best: Best | None) -> list[str]:
    notes = []
    if best is not None:
        notes.append(f"dashed: best {best.metric}, {best.value:.4g} at step {best.step:,}")
    # Lines of retrieval alone know no classes.
    tail = next((line["tail"] for line in reversed(lines) if "tail" in line), None)
    if tail is not None:
        notes.append(f"rare: {', '.join(tail)}")
    return notes


def _draw(axis: Axes, lines: Sequence[Mapping[str, Any]], panel: _Panel, best: Best | None) -> None:
    """A curve for each metric of a panel that the lines have."""
    steps = [line["step"] for line in lines]
    for number, (name, label) in enumerate(panel.curves.items()):
        values = [line["metrics"].get(name) for line in lines]
        if all(value is None for value in values):
            continue
        axis.plot(
            steps,
            [np.nan if value is None else value for value in values],
            color=SAFE_COLOURS[number],
            marker=_MARKERS[number],
            markersize=4,
            linewidth=1.4,
            label=label,
        )
    if best is not None:
        axis.axvline(best.step, color="#888888", linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
    if panel.is_share:
        axis.set_ylim(-0.02, 1.02)
    if panel.own_legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    axis.set_title(panel.title, loc="left")
    axis.grid(color="#e3e8ed", linewidth=0.6)
    axis.tick_params(length=0)

"""A picture of a run's validations: how the encoder gets on, and which checkpoint is the best."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from terrafm.errors import UsageError
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.figure import SAFE_COLOURS, picture
from terrafm.storage import join
from terrafm.train.checkpoints.best import Best, read_best
from terrafm.train.checkpoints.store import CHECKPOINTS
from terrafm.train.validations import VALIDATION_FILE, read_validations

_CURVES = {**SENSOR_TITLES, "fused": "all fused"}
_MARKERS = "os^D"


def validation_curve(run_folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws kNN accuracy, that of the rare classes, effective rank and uniformity over the steps.

    Args:
        run_folder: URI of the run.
        path: URI of the PNG.

    Raises:
        UsageError: the run has no validation.
    """
    uri = os.fspath(run_folder).rstrip("/")
    lines = read_validations(uri)
    if not lines:
        raise UsageError(f"{join(uri, VALIDATION_FILE)} does not exist or holds no validation")
    best = read_best(join(uri, CHECKPOINTS))
    tail = ", ".join(lines[-1]["tail"])
    panels = (
        ("kNN accuracy, k = 20", "knn20/{}/accuracy"),
        ("kNN accuracy of the rare classes", "knn20/{}/tail_accuracy"),
        ("Effective rank (directions)", "effective_rank/{}"),
        ("Uniformity (lower is more even)", "uniformity/{}"),
    )
    with picture(path, (9.5, 6.2)) as figure:
        axes = figure.subplots(2, 2, sharex=True)
        for axis, (title, key) in zip(axes.ravel(), panels, strict=True):
            _draw(axis, lines, key, best)
            axis.set_title(title, loc="left")
        for axis in axes[0]:
            axis.set_ylim(-0.02, 1.02)
        for axis in axes[1]:
            axis.set_xlabel("step")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        notes = [f"rare: {tail}"]
        if best is not None:
            notes.insert(0, f"dashed: best {best.metric}, {best.value:.4g} at step {best.step:,}")
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.035), ncols=4)
        figure.text(0.5, 0.012, "     ".join(notes), ha="center", fontsize=8, color="#555555")


def _draw(axis: Axes, lines: Sequence[Mapping[str, Any]], key: str, best: Best | None) -> None:
    """A curve for each choice of modalities that the lines have."""
    steps = [line["step"] for line in lines]
    for number, (name, label) in enumerate(_CURVES.items()):
        values = [line["metrics"].get(key.format(name)) for line in lines]
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
    axis.grid(color="#e3e8ed", linewidth=0.6)
    axis.tick_params(length=0)

"""Pictures of a sweep: how trials learned, how measures answer to settings, what matters."""

from __future__ import annotations

import json
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from terrafm.pictures.figure import SAFE_COLOURS, picture
from terrafm.storage import join
from tuning.analysis import Findings, is_missing, is_number
from tuning.objective import titled
from tuning.trials import COLLAPSED, FAILED, FINISHED, OPEN, STOPPED

_MARKS = {FINISHED: "o", STOPPED: "X", COLLAPSED: "v", FAILED: "P", OPEN: "D"}
_HEAD, _TAIL, _ALL = SAFE_COLOURS[0], SAFE_COLOURS[5], SAFE_COLOURS[2]
SHARES = {"head_accuracy": "head classes", "tail_accuracy": "tail classes"}
_LINES = {"head_accuracy": ("head classes", _HEAD), "tail_accuracy": ("tail classes", _TAIL)}
PARALLEL = "parallel"
_GRID: dict[str, Any] = {"color": "#e3e8ed", "linewidth": 0.6}
_MOST_COLUMNS = 3


def draw_all(findings: Findings, folder: str) -> None:
    """Writes all pictures of a sweep for which there is something to draw.

    Args:
        findings: what they tell.
        folder: URI of the folder.
    """
    if findings.config.tune.arms:
        arms(findings, join(folder, "arms.png"))
    responses(findings, join(folder, "responses.png"))
    if findings.importance:
        importance(findings, join(folder, "importance.png"))
    parallel_coordinates(findings, join(folder, f"{PARALLEL}.png"))
    learning_curves(findings, join(folder, "curves.png"))


def learning_curves(findings: Findings, path: str) -> None:
    """The objective of every trial over its steps, with a mark where it ended."""
    with picture(path, (9.5, 4.4)) as figure:
        axes = figure.subplots()
        groups = {key: n for n, key in enumerate(dict.fromkeys(findings.table["point"]))}
        for _, row in findings.table.iterrows():
            lines = [line for line in findings.scores[row["trial"]] if findings.objective in line]
            if not lines:
                continue
            steps = [line["step"] for line in lines]
            values = [line[findings.objective] for line in lines]
            colour = SAFE_COLOURS[groups[row["point"]] % len(SAFE_COLOURS)]
            axes.plot(steps, values, color=colour, linewidth=1.2, alpha=0.8)
            axes.plot(
                steps[-1],
                values[-1],
                marker=_MARKS[row["state"]],
                color=colour,
                markersize=7,
                markeredgecolor="white",
                linestyle="none",
            )
        present = [state for state in _MARKS if (findings.table["state"] == state).any()]
        for state in present:
            axes.plot([], [], marker=_MARKS[state], color="#555555", linestyle="none", label=state)
        axes.legend(fontsize=8, ncols=len(present), loc="lower right")
        axes.set(xlabel="step", ylabel=titled(findings.objective))
        axes.set_title(f"{titled(findings.objective)} of each trial", loc="left")
        axes.grid(**_GRID)
        figure.tight_layout()


def responses(findings: Findings, path: str) -> bool:
    """Head and tail accuracy over each numeric key; False where there is none to draw."""
    keys = [key for key in findings.keys if response(findings, key)[1] is not None]
    if not keys:
        return False
    columns = min(_MOST_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    with picture(path, (3.6 * columns + 0.6, 3.1 * rows + 0.3)) as figure:
        axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
        for axis in axes[len(keys) :]:
            axis.set_axis_off()
        for axis, key in zip(axes, keys, strict=False):
            _draw_response(axis, findings, key)
        for axis in axes[:: columns or 1]:
            axis.set_ylabel("accuracy")
        axes[0].legend(fontsize=8)
        figure.tight_layout()
    return True


def response(findings: Findings, key: str) -> tuple[bool, pd.DataFrame | None]:
    """What is to be seen of a setting: points that differ in nothing else, or else all.

    Returns:
        Whether they differ in nothing else, and the points, ordered by the key, which is a
        number; None where it is not, or does not vary.
    """
    values = _values(findings, key)
    if not all(is_number(value) for value in values) or len(set(values)) < 2:
        return False, None
    points = findings.common_points.copy()
    points[key] = _values(findings, key)
    others = [name for name in findings.keys if name != key]
    setting = pd.Series(
        [
            json.dumps([_value(findings, row, name) for name in others])
            for _, row in points.iterrows()
        ],
        index=points.index,
    )
    usual = setting.mode().iloc[0]
    alike = points[setting == usual]
    joined = alike[key].nunique() > 1
    shown = (alike if joined else points).sort_values(key)
    shown[key] = shown[key].astype(float)
    return joined, shown


def _draw_response(axis: Axes, findings: Findings, key: str) -> None:
    """A line over points that differ in nothing else; else a mark for each point."""
    joined, shown = response(findings, key)
    assert shown is not None
    for measure, (label, colour) in _LINES.items():
        if measure not in shown or shown[measure].isna().all():
            continue
        axis.errorbar(
            shown[key].astype(float),
            shown[measure].astype(float),
            yerr=shown[f"{measure}_std"].astype(float).fillna(0.0),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.4 if joined else 0,
            elinewidth=1.0,
            capsize=2.5,
            label=label,
        )
    low, high = float(shown[key].min()), float(shown[key].max())
    if low > 0 and high / low > 20:
        axis.set_xscale("log")
    axis.set_title(key, loc="left")
    axis.grid(**_GRID)


def arms(findings: Findings, path: str) -> None:
    """Each arm's overall, head and tail accuracy with the spread over seeds."""
    points = findings.points.set_index("arm")
    names = [name for name in findings.config.tune.arms if name in points.index]
    measures = {"overall_accuracy": ("all images", _ALL), **_LINES}
    with picture(path, (8.5, 0.9 + 0.46 * len(names))) as figure:
        axis = figure.subplots()
        height = np.arange(len(names), dtype=float)
        for number, (measure, (label, colour)) in enumerate(measures.items()):
            if measure not in points:
                continue
            axis.errorbar(
                points.loc[names, measure].astype(float),
                height + (number - 1) * 0.18,
                xerr=points.loc[names, f"{measure}_std"].astype(float).fillna(0.0),
                color=colour,
                marker="o",
                markersize=5,
                linestyle="none",
                capsize=2.5,
                label=label,
            )
        axis.set_yticks(height, names)
        axis.invert_yaxis()
        axis.set_xlabel("accuracy, mean and standard deviation over seeds")
        axis.grid(axis="x", **_GRID)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
        figure.tight_layout()


def importance(findings: Findings, path: str) -> None:
    """Shares of the variance that keys explain, with their uncertainty."""
    keys = list(findings.importance)[::-1]
    means = [findings.importance[key][0] for key in keys]
    errors = [findings.importance[key][1] for key in keys]
    with picture(path, (7.5, 0.9 + 0.4 * len(keys))) as figure:
        axis = figure.subplots()
        axis.barh(keys, means, xerr=errors, color=SAFE_COLOURS[4], ecolor="#444444", capsize=3)
        axis.set_xlim(0, None)
        axis.set_xlabel(f"share of the variance of {titled(findings.objective).lower()}")
        axis.grid(axis="x", **_GRID)
        axis.set_axisbelow(True)
        figure.tight_layout()


def parallel_coordinates(findings: Findings, path: str) -> bool:
    """One line for each point over all keys to the objective; False where fewer than two vary."""
    points = findings.common_points
    keys = [
        key for key in findings.keys if len({json.dumps(v) for v in _values(findings, key)}) > 1
    ]
    if len(keys) < 2 or len(points) < 2:
        return False
    names = [*keys, findings.objective]
    with picture(path, (1.9 * len(names) + 1.0, 4.2)) as figure:
        axis = figure.subplots()
        heights = np.column_stack([_heights(findings, name) for name in names])
        worth = heights[:, -1]
        colours = figure_colours(worth)
        for number in np.argsort(worth):
            axis.plot(heights[number], color=colours[number], linewidth=1.6, alpha=0.85)
        for place, name in enumerate(names):
            axis.axvline(place, color="#888888", linewidth=0.8)
            for height, label in _ticks(findings, name):
                background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
                axis.text(place + 0.03, height, label, fontsize=7, va="center", bbox=background)
        axis.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
        axis.set(ylim=(-0.05, 1.05), yticks=[], xlim=(-0.1, len(names) - 0.6))
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.tick_params(length=0)
        axis.set_title(f"darker is better: {titled(findings.objective).lower()}", loc="left")
        figure.tight_layout()
    return True


def figure_colours(worth: np.ndarray[Any, Any]) -> list[Any]:
    """From light to dark with what a point is worth, 0..1."""
    return [mpl.colormaps["viridis_r"](0.1 + 0.85 * value) for value in worth]


def _heights(findings: Findings, name: str) -> np.ndarray[Any, Any]:
    """(points,) places on an axis, 0..1."""
    values = _values(findings, name)
    if all(is_number(v) for v in values):
        numbers = np.array(values, dtype=float)
    else:
        order = sorted({json.dumps(v) for v in values})
        numbers = np.array([order.index(json.dumps(v)) for v in values], dtype=float)
    spread = numbers.max() - numbers.min()
    return (numbers - numbers.min()) / spread if spread else np.full(len(numbers), 0.5)


def _ticks(findings: Findings, name: str) -> list[tuple[float, str]]:
    values, heights = _values(findings, name), _heights(findings, name)
    shown = {}
    for value, height in zip(values, heights.tolist(), strict=True):
        shown[height] = f"{value:.3g}" if isinstance(value, float) else str(value)
    ordered = sorted(shown.items())
    numeric = all(is_number(v) for v in values) and len(ordered) > 5
    return [ordered[0], ordered[-1]] if numeric else ordered


def _values(findings: Findings, name: str) -> list[Any]:
    return [_value(findings, row, name) for _, row in findings.common_points.iterrows()]


def _value(findings: Findings, row: pd.Series[Any], name: str) -> Any:
    """Of a point; the configuration's where it leaves a key as it is."""
    value = row[name]
    if "." in name and is_missing(value):
        section, _, key = name.partition(".")
        return findings.config.model_dump()[section][key]
    return value

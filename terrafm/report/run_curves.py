"""Charts of how runs learned and how fast, one run or several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from terrafm.report.blocks import Chart, Curve, Mark, Table
from terrafm.report.run_history import Happening, History
from terrafm.report.run_record import RunRecord
from terrafm.report.thinning import picked_rows, smoothed

Numbers = NDArray[np.float64]

# Points of a chart: more than a wide screen has columns for.
_POINTS = 1600
# Lines from which on raw values stand behind their moving mean.
_NOISY = 120
_MOST_MARKS = 120
_MOST_GROUPS = 400


@dataclass(frozen=True)
class _Plan:
    """A chart to be drawn.

    Attributes:
        title: of it.
        curves: key of metrics.jsonl -> label.
        note: below the title.
        level: horizontal line of a run, with its name.
        limits: of the vertical axis.
        schedule: values without noise.
    """

    title: str
    curves: dict[str, str]
    note: str = ""
    level: Callable[[RunRecord], tuple[float, str] | None] | None = None
    limits: tuple[float | None, float | None] = (None, None)
    schedule: bool = False


def _chance(run: RunRecord) -> tuple[float, str] | None:
    config = run.config
    # A distilled encoder learns tokens, without prototypes.
    distils = config is not None and config.distil.teacher is not None
    prototypes = None if config is None or distils else config.head.num_prototypes
    return (
        None if prototypes is None else (math.log(prototypes), f"ln K: chance for {prototypes:,}")
    )


def _clip(run: RunRecord) -> tuple[float, str] | None:
    clip = None if run.config is None else run.config.optim.clip_grad
    return None if not clip else (float(clip), "optim.clip_grad")


_LEARNING = (
    _Plan(
        "Loss (nats)",
        {"loss": "loss"},
        "Cross-entropy of teacher and student. It should fall below ln K soon after the warm-up.",
        _chance,
    ),
    _Plan(
        "Entropy (nats)",
        {"teacher_entropy": "teacher", "student_entropy": "student"},
        "Near ln K the targets are uniform; near 0 every image gets a single prototype.",
        _chance,
    ),
    _Plan(
        "Prototypes in use (perplexity)",
        {"prototype_perplexity": "prototypes"},
        "How many prototypes the teacher's mean distribution spreads over.",
        limits=(0, None),
    ),
    _Plan(
        "Effective rank of the features",
        {"effective_rank": "effective rank"},
        "How many directions the teacher's features use. A long fall is a sign of collapse.",
        limits=(0, None),
    ),
    _Plan("Patches (nats)", {"masked_patch": "masked patches", "koleo": "KoLeo"}),
    _Plan(
        "Error of the distilled tokens",
        {"cls_error": "CLS", "patch_error": "patches"},
        "Mean squared difference to the frozen teacher's tokens.",
        limits=(0, None),
    ),
    _Plan(
        "Gradient norm",
        {"grad_norm": "gradient norm"},
        "Before clipping. If it rises several times over, lower optim.base_lr.",
        _clip,
        limits=(0, None),
    ),
    _Plan("Learning rate", {"lr": "learning rate"}, limits=(0, None), schedule=True),
    _Plan("Teacher momentum", {"momentum": "momentum"}, schedule=True),
    _Plan("Teacher temperature", {"teacher_temp": "temperature"}, schedule=True),
    _Plan("Weight decay", {"weight_decay": "weight decay"}, schedule=True),
)
_SPEED = (
    _Plan(
        "Tiles per second",
        {"tiles_per_second": "tiles/s"},
        "Of all workers together.",
        limits=(0, None),
    ),
    _Plan(
        "Time not spent computing (share)",
        {
            "data_wait": "waiting for data",
            "share_checkpoint": "saving",
            "share_optimizer": "reducing and updating",
            "share_other": "other",
        },
        "Of rank 0, as a share of its time.",
        limits=(0, None),
    ),
    _Plan("Model FLOPs utilisation", {"mfu": "MFU"}, limits=(0, None)),
)


def learning_charts(histories: Sequence[History]) -> list[Chart]:
    """What was learned, over the steps."""
    return [chart for plan in _LEARNING if (chart := _draw(plan, histories))]


def speed_charts(histories: Sequence[History]) -> list[Chart]:
    """How fast, over the steps."""
    return [chart for plan in _SPEED if (chart := _draw(plan, histories))]


def _draw(plan: _Plan, histories: Sequence[History]) -> Chart | None:
    """A plan's chart; None where no run has the numbers."""
    several = len(histories) > 1
    parts: list[tuple[Numbers, list[tuple[Curve, Numbers]]]] = []
    for number, history in enumerate(histories):
        part = _curves(plan, history.run, number if several else None, _POINTS // len(histories))
        if part[1]:
            parts.append(part)
    if not parts:
        return None
    x = np.unique(np.concatenate([rows for rows, _ in parts]))
    curves = [
        replace(curve, values=_on(x, rows, values))
        for rows, drawn in parts
        for curve, values in drawn
    ]
    levels = {plan.level(h.run) for h in histories} if plan.level else {None}
    marks = [] if several else marks_by_step(histories[0].happenings)
    return Chart(
        plan.title,
        x.tolist(),
        curves,
        note=plan.note,
        marks=marks,
        limits=plan.limits,
        # Runs of different heads have no line in common.
        level=levels.pop() if len(levels) == 1 else None,
    )


def _curves(
    plan: _Plan, run: RunRecord, number: int | None, most: int
) -> tuple[Numbers, list[tuple[Curve, Numbers]]]:
    """Steps that are kept of a run, and its curves with their values there."""
    found = {key: run.column(key) for key in plan.curves}
    found = {key: values for key, values in found.items() if np.isfinite(values).any()}
    if not found:
        return np.array([]), []
    noisy = len(run.steps) > _NOISY and not plan.schedule
    rows = picked_rows(list(found.values()), most)
    width = max(3, len(run.steps) // 40) | 1
    drawn = []
    for index, (key, values) in enumerate(found.items()):
        label = plan.curves[key]
        if number is not None:
            label = run.name if len(plan.curves) == 1 else f"{run.name}, {label}"
        colour, dash = (index, index) if number is None else (number, index + number // 8)
        if number is not None and len(plan.curves) == 1:
            # Runs differ in more than colour.
            dash = number
        if noisy:
            drawn.append((Curve(label, (), colour, faint=True), values[rows]))
            values = smoothed(values, width)
        drawn.append((Curve(label, (), colour, dash), values[rows]))
    return run.steps[rows], drawn


def _on(x: Numbers, rows: Numbers, values: Numbers) -> list[float | None]:
    """Values at their own x, None at those of other runs."""
    placed = np.full(len(x), np.nan)
    placed[np.searchsorted(x, rows)] = values
    return [None if math.isnan(value) else value for value in placed.tolist()]


def marks_by_step(happenings: Sequence[Happening]) -> list[Mark]:
    """Faults, changes and alarms for a chart over steps; the start and the end are plain there."""
    return [
        Mark(
            float(h.step), _told(h), h.level, None if h.until_step is None else float(h.until_step)
        )
        for h in happenings
        if h.step is not None and h.level != "good"
    ][:_MOST_MARKS]


def timeline(history: History) -> Chart | None:
    """Workers over the time, with everything that happened; None where no event tells of it."""
    if not history.groups:
        return None
    points: list[tuple[float, float]] = []
    for group in history.groups[-_MOST_GROUPS:]:
        trained = group.ended if group.trained is None else group.trained
        points += [(group.started, 0.0), (trained, float(group.workers)), (group.ended, 0.0)]
    if history.groups[-1].ending == "running":
        # It has not ended: the last value is that of now.
        trains = history.groups[-1].trained is not None
        points[-2:] = (
            [points[-2], (points[-1][0], points[-2][1])] if trains else [(points[-1][0], 0.0)]
        )
    # uPlot needs rising x.
    rising: dict[float, float] = {}
    for moment, workers in points:
        rising[round(moment, 1)] = workers
    marks = [
        Mark(round(h.time, 1), _told(h), h.level) for h in history.happenings if h.time is not None
    ]
    # A mark is read at the nearest point.
    known = sorted(rising)
    for mark in marks:
        if mark.x not in rising:
            below = [moment for moment in known if moment <= mark.x]
            rising[mark.x] = rising[below[-1]] if below else 0.0
            known = sorted(rising)
    x = sorted(rising)
    curve = Curve("workers that train", [rising[moment] for moment in x], stepped=True)
    return Chart(
        "Workers over time (UTC)",
        x,
        [curve],
        "time",
        "Triangles mark what happened; the table below says what it was and what it cost.",
        marks[:_MOST_MARKS],
        (0, max(g.workers for g in history.groups) * 1.15),
    )


def happenings_table(history: History) -> Table | None:
    """All that happened, as a table; None where nothing is known."""
    if not history.happenings:
        return None
    words = {"good": "event", "note": "change", "bad": "fault"}
    return Table(
        "Events",
        ["time (UTC)", "step", "kind", "what happened", "what it cost"],
        [
            [
                moment(h.time),
                h.step,
                "alarm" if h.until_step is not None else words[h.level],
                h.text,
                h.cost or None,
            ]
            for h in history.happenings
        ],
        marked={n for n, h in enumerate(history.happenings) if h.level == "bad"},
    )


def moment(seconds: float | None) -> str:
    """A time in UTC; empty where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return np.datetime64(int(seconds), "s").item().strftime("%Y-%m-%d %H:%M:%S")


def _told(happening: Happening) -> str:
    cost = f" ({happening.cost})" if happening.cost else ""
    return f"{happening.text}{cost}"

"""A sweep as one self-contained page: no server, no network, no file beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from terrafm.config import Config, load_config
from terrafm.errors import UsageError
from terrafm.report.blocks import (
    Block,
    Cell,
    Chart,
    Curve,
    Mark,
    Picture,
    Section,
    Source,
    Table,
    Text,
    Verdict,
)
from terrafm.report.kinds import Target, Wanted
from terrafm.report.page import Page, write_page
from terrafm.storage import exists, join, read_bytes, write_bytes
from tuning import figures
from tuning.analysis import Findings, best_yaml, find, is_missing, is_number
from tuning.objective import HEADLINES, MEASURES, titled
from tuning.trials import FAILED, OPEN, STATES, TABLE_FILE

BEST_FILE, REPORT_FILE, SWEEP_FILE = "best.yaml", "report.html", "sweep.yaml"
_PICTURES = "pictures"
# More curves than eyes can follow: the best points keep theirs.
_MOST_TRIALS = 48
_MOST_ROWS = 500


def analyse(output: str, config: Config) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Writes best.yaml, report.html and pictures from the trials of a sweep's folder.

    Args:
        output: URI of the sweep's folder.
        config: of the sweep.

    Returns:
        State -> number of trials, and the best point; see `Findings.best`.
    """
    findings = find(output, config)
    best = findings.best
    if best is not None:
        write_bytes(join(output, BEST_FILE), best_yaml(findings, best).encode())
        figures.draw_all(findings, join(output, _PICTURES))
        sections = sweep_sections(output, findings)
        write_page(join(output, REPORT_FILE), Page("Sweep", output, sections))
    states = findings.table["state"].value_counts().to_dict()
    return {str(state): int(count) for state, count in states.items()}, best


def report_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    """Sections about sweeps, for `terrafm report`.

    Raises:
        UsageError: a sweep has no trial yet.
    """
    sections = []
    for target in targets:
        if not exists(join(target.uri, TABLE_FILE)):
            raise UsageError(f"the sweep in {target.uri} has no trial that has ended yet")
        found = find(target.uri, load_config(join(target.uri, SWEEP_FILE), []))
        prefix = f"{target.name}: " if len(targets) > 1 else ""
        sections += [
            replace(section, title=prefix + section.title)
            for section in sweep_sections(target.uri, found)
        ]
    return sections


def sweep_sections(output: str, findings: Findings) -> list[Section]:
    """What a sweep has found.

    Args:
        output: URI of the sweep's folder, where the pictures are.
        findings: what it tells.
    """
    sections = [Section("Best point", _best(findings))]
    answers = [*_arms(findings), *_responses(findings), *_importance(findings)]
    if answers:
        sections.append(Section("What matters", answers))
    if (picture := _parallel(output)) is not None:
        sections.append(Section("All points", [picture]))
    if (curves := _learning_curves(findings)) is not None:
        sections.append(Section("How trials learned", [curves]))
    return [*sections, Section("Points and trials", _tables(findings))]


def _best(findings: Findings) -> list[Block]:
    counts = findings.table["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    minutes = float(findings.table["seconds"].sum()) / 60
    step, objective = int(findings.table["steps"].max()), findings.objective
    details = [
        f"{states}; {minutes:.0f} minutes of trials.",
        f"Trials are compared at step {step:,} by {titled(objective).lower()}: "
        f"{MEASURES[objective]}.",
    ]
    best = findings.best
    if best is None:
        return [Verdict("", "note", "no trial has a value yet", details)]
    arm = f" ({best['arm']})" if best["arm"] else ""
    mean = f"mean of {best['trials']} trial{'s' if best['trials'] != 1 else ''}"
    value = best["measures"].get(objective, float("nan"))
    trouble = bool(counts.get(FAILED, 0) or counts.get(OPEN, 0))
    headline = f"point {best['point']}{arm}: {titled(objective).lower()} {value:.3f}, {mean}"
    rows: list[list[Cell]] = [[key, _short(best["set"].get(key))] for key in findings.keys]
    rows += [[titled(name), _number(best["measures"].get(name))] for name in HEADLINES]
    return [
        Verdict("", "note" if trouble else "good", headline, details),
        Table("The best point", ["setting", "value"], rows),
        Source(BEST_FILE, best_yaml(findings, best)),
    ]


def _arms(findings: Findings) -> list[Block]:
    """Arms with their spread, and their differences to the first."""
    names = list(findings.config.tune.arms)
    if not names or findings.points.empty:
        return []
    points = findings.points.set_index("arm")
    rows: list[list[Cell]] = [
        [
            name,
            int(points["n"].to_dict()[name]),
            *(_with_spread(points.loc[name], m) for m in HEADLINES),
        ]
        for name in names
        if name in points.index
    ]
    title = "Arms: mean and standard deviation over seeds"
    blocks: list[Block] = [Table(title, ["arm", "trials", *map(titled, HEADLINES)], rows)]
    if not findings.differences.empty:
        found = _differences(findings.differences)
        title = (
            "Differences to the first arm in percentage points, pairs of the same seed, 95 % "
            "intervals of Student's t; marked: the interval excludes 0"
        )
        columns = ["arm", "measure", "pairs", "difference", "interval"]
        marked = {n for n, (_, clear) in enumerate(found) if clear}
        blocks.append(Table(title, columns, [row for row, _ in found], marked=marked))
    return blocks


def _responses(findings: Findings) -> list[Chart]:
    """How head and tail classes answer to each setting that is a number."""
    charts = []
    for key in findings.keys:
        joined, shown = figures.response(findings, key)
        if shown is None:
            continue
        # Of points that share a value, which differ in other settings, each stays: means here.
        means = shown.groupby(key, sort=True).mean(numeric_only=True)
        x = [float(value) for value in means.index]
        curves = []
        for number, (measure, label) in enumerate(figures.SHARES.items()):
            if measure not in means or means[measure].isna().all():
                continue
            spread = means.get(f"{measure}_std", pd.Series(np.nan, means.index)).fillna(0.0)
            curves.append(
                Curve(
                    label,
                    _floats(means[measure]),
                    number,
                    number,
                    low=_floats(means[measure] - spread),
                    high=_floats(means[measure] + spread),
                    points=True,
                )
            )
        note = (
            f"At step {findings.common_step:,}; "
            + ("points differ in nothing else" if joined else "means over the other settings")
            + ", bands are standard deviations over seeds."
        )
        if curves:
            charts.append(Chart(f"Accuracy by {key}", x, curves, key, note))
    return charts


def _importance(findings: Findings) -> list[Block]:
    if not findings.importance:
        words = "Too few trials came to the same step to tell which setting matters."
        return [Text(words, quiet=True)]
    rows: list[list[Cell]] = [
        [key, round(mean, 3), f"± {spread:.3f}"]
        for key, (mean, spread) in findings.importance.items()
    ]
    title = (
        f"Share of the variance at step {findings.common_step:,} that a setting explains (fANOVA), "
        "with standard deviations over trials drawn anew"
    )
    return [Table(title, ["setting", "share", "deviation"], rows, bars={1: 1.0})]


def _parallel(output: str) -> Picture | None:
    """The picture of all points, where the sweep has drawn one."""
    uri = join(output, _PICTURES, f"{figures.PARALLEL}.png")
    if not exists(uri):
        return None
    return Picture(
        "All points at once",
        read_bytes(uri),
        "One line for each point across an axis for each setting; the last axis is the result. "
        "The table of points below has the same numbers.",
        "A line is a point; darker is better.",
    )


def _learning_curves(findings: Findings) -> Chart | None:
    """The objective of every trial over its steps, with a mark where one ended early."""
    objective = findings.objective
    lines = {
        int(row["trial"]): {
            line["step"]: line[objective]
            for line in findings.scores[row["trial"]]
            if is_number(line.get(objective))
        }
        for _, row in findings.table.iterrows()
    }
    best_first = sorted((n for n in lines if lines[n]), key=lambda n: -max(lines[n].values()))[
        :_MOST_TRIALS
    ]
    if not best_first:
        return None
    x = sorted({step for number in best_first for step in lines[number]})
    rows = findings.table.set_index("trial")
    points = {p: n for n, p in enumerate(dict.fromkeys(rows.loc[sorted(best_first), "point"]))}
    curves, marks = [], []
    for number in sorted(best_first):
        row = rows.loc[number]
        colour = points[row["point"]]
        name = row["arm"] or f"point {row['point']}"
        values = [lines[number].get(step) for step in x]
        label = f"{name}, seed {row['seed']}"
        curves.append(Curve(label, values, colour, colour // 8, points=True))
        if row["state"] != "finished":
            meaning = STATES.get(str(row["state"]), "")
            told = f"{label}: {row['state']}, {meaning}"
            marks.append(Mark(float(max(lines[number])), told, "note"))
    note = "Trials of one point share a colour; triangles mark those that ended early."
    left = len(lines) - len(best_first)
    if left:
        note += f" {left} trials with lower values, or none, are not drawn."
    return Chart(f"{titled(objective)} of each trial", x, curves, note=note, marks=marks)


def _tables(findings: Findings) -> list[Block]:
    arms, step = bool(findings.config.tune.arms), int(findings.table["steps"].max())
    head = ["point", *(["arm"] if arms else []), "trials", *map(titled, HEADLINES), *findings.keys]
    rows: list[list[Cell]] = []
    if not findings.points.empty:
        ordered = findings.points.sort_values(findings.objective, ascending=False)
        rows = [
            [
                int(row["point"]),
                *([row["arm"]] if arms else []),
                int(row["n"]),
                *(_with_spread(row, name) for name in HEADLINES),
                *(_short(row[key]) for key in findings.keys),
            ]
            for _, row in ordered.head(_MOST_ROWS).iterrows()
        ]
    title = f"Points with a value at step {step:,}, the best first; mean ± deviation over seeds"
    trials: list[list[Cell]] = [
        [
            int(row["trial"]),
            int(row["point"]),
            int(row["seed"]),
            row["state"],
            int(row["steps"]),
            round(float(row["seconds"])),
            *(_number(row.get(name)) for name in HEADLINES),
            row["alarm"] or row.get("failure") or "",
        ]
        for _, row in findings.table.head(_MOST_ROWS).iterrows()
    ]
    columns = ["trial", "point", "seed", "state", "steps", "seconds", *map(titled, HEADLINES)]
    return [
        Table(title, head, rows, marked={0} if rows else set()),
        Table("Trials", [*columns, "alarm or failure"], trials),
    ]


def _differences(frame: pd.DataFrame) -> list[tuple[list[Cell], bool]]:
    """Rows, and whether each is clear of 0."""
    return [
        (
            [
                row["arm"],
                titled(row["measure"]),
                int(row["n"]),
                f"{100 * row['difference']:+.1f}",
                "one pair: no interval"
                if is_missing(row["low"])
                else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
            ],
            bool(row["low"] > 0 or row["high"] < 0),
        )
        for _, row in frame.iterrows()
    ]


def _floats(series: pd.Series[Any]) -> list[float | None]:
    return [None if is_missing(value) else float(value) for value in series]


def _with_spread(row: Any, name: str) -> str:
    if is_missing(row.get(name)):
        return "-"
    spread = row.get(f"{name}_std")
    return f"{row[name]:.3f}" + ("" if is_missing(spread) else f" ± {spread:.3f}")


def _number(value: Any) -> str:
    return "-" if is_missing(value) else f"{value:.3f}"


def _short(value: Any) -> str:
    if is_missing(value):
        return "as configured"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)

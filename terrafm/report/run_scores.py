"""What a run's encoder is worth: scores over its steps with intervals, tail classes, retrieval."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from terrafm.modalities import SENSOR_TITLES
from terrafm.report.blocks import Block, Cell, Chart, Curve, Heat, Mark, Table, Text
from terrafm.report.run_record import RunRecord, number

_CHOICES = {**SENSOR_TITLES, "fused": "all fused"}
_RETRIEVAL = re.compile(r"retrieval/([\w-]+)-to-([\w-]+)/recall10")
_Z = 1.959963984540054
# More classes than a table is read for.
_MOST_CLASSES = 60
# More than a chart has marks for, and pairs than it has colours for.
_MOST_SCORES, _MOST_PAIRS = 300, 12


def interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n independent trials (Wilson 1927).

    Returns:
        Low and high; 0 and 1 where nothing was tried.
    """
    if n <= 0:
        return 0.0, 1.0
    middle = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(shares: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A 95 % interval of the mean of several shares, each of n trials, given as (share, n).

    The variances are those of Agresti and Coull's adjusted shares, which are not 0 where a class
    of few images is found always or never.
    """
    if not shares:
        return 0.0, 1.0
    mean = sum(share for share, _ in shares) / len(shares)
    variance = 0.0
    for share, n in shares:
        adjusted = (share * n + 2) / (n + 4)
        variance += adjusted * (1 - adjusted) / (n + 4)
    half = _Z * math.sqrt(variance) / len(shares)
    return max(0.0, mean - half), min(1.0, mean + half)


def score_blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """Charts of all runs over one another, and tables of each run's newest scores."""
    runs = [_thinned(run) for run in runs]
    scored = [run for run in runs if run.scores]
    if not scored:
        return []
    several = len(runs) > 1
    charts = [
        _chart("kNN accuracy", "knn20/{}/accuracy", runs, "k = 20; chance depends on the classes."),
        _chart(
            "kNN accuracy of the tail classes",
            "knn20/{}/tail_accuracy",
            runs,
            "Mean over the rarest third of the classes.",
        ),
        _chart("Effective rank of the scored images", "effective_rank/{}", runs, share=False),
        _retrieval_chart(runs),
    ]
    blocks: list[Block] = [chart for chart in charts if chart is not None]
    for run in scored:
        name = f"{run.name}: " if several else ""
        newest = run.scores[-1]
        blocks += [b for b in (_heat(newest, name), _classes(newest, name)) if b is not None]
    blocks.append(
        Text(
            "Bands and brackets are 95 % intervals from the number of images alone (Wilson); they "
            "take images for independent and say nothing of other seeds. The best of many "
            "checkpoints is partly luck: terrafm evaluate compare gives a figure to publish.",
            quiet=True,
        )
    )
    return blocks


def _thinned(run: RunRecord) -> RunRecord:
    """With a bounded number of its validations, the newest among them."""
    step = -(-len(run.scores) // _MOST_SCORES)
    return replace(run, scores=run.scores[::-1][::step][::-1]) if step > 1 else run


def _chart(
    title: str, pattern: str, runs: Sequence[RunRecord], note: str = "", share: bool = True
) -> Chart | None:
    """One curve for each choice of sensors of each run that has it."""
    several = len(runs) > 1
    x = sorted({line["step"] for run in runs for line in run.scores})
    curves = []
    for place, run in enumerate(runs):
        by_step = {line["step"]: line for line in run.scores}
        for index, (choice, label) in enumerate(_CHOICES.items()):
            name = pattern.format(choice)
            values = [_metric(by_step.get(step), name) for step in x]
            if all(value is None for value in values):
                continue
            bounds = [_bounds(by_step.get(step), name) if share else None for step in x]
            with_bounds = any(bounds)
            curves.append(
                Curve(
                    f"{run.name}, {label}" if several else label,
                    values,
                    place if several else index,
                    index,
                    low=[b and b[0] for b in bounds] if with_bounds else None,
                    high=[b and b[1] for b in bounds] if with_bounds else None,
                    points=True,
                )
            )
    if not curves:
        return None
    limits = (0, 1) if share else (0, None)
    return Chart(title, x, curves, note=note, marks=_best(runs), limits=limits)


def _best(runs: Sequence[RunRecord]) -> list[Mark]:
    several = len(runs) > 1
    return [
        Mark(
            float(run.best["step"]),
            f"{run.name + ': ' if several else ''}best checkpoint by {run.best['metric']}",
            "good",
        )
        for run in runs
        if run.best is not None
    ]


def _metric(line: Mapping[str, Any] | None, name: str) -> float | None:
    return None if line is None else line["metrics"].get(name)


def _bounds(line: Mapping[str, Any] | None, name: str) -> tuple[float, float] | None:
    """Interval of a score of kNN or retrieval, from the counts beside it."""
    value = _metric(line, name)
    if line is None or value is None:
        return None
    parts = name.split("/")
    if parts[0] == "retrieval":
        n = _queries(line, parts[1])
        return None if n is None else interval(value, n)
    classes = line.get("per_class", {}).get(parts[1], {})
    rows = {c: (row[parts[0]], row["n"]) for c, row in classes.items() if {"n", parts[0]} <= {*row}}
    if not rows:
        return None
    if parts[2] == "tail_accuracy":
        return mean_interval([rows[c] for c in line.get("tail", []) if c in rows])
    return interval(value, sum(n for _, n in rows.values()))


def _queries(line: Mapping[str, Any], task: str, key: str = "n") -> float | None:
    found = line.get("retrieval")
    tasks = found.get("tasks") if isinstance(found, dict) else None
    entry = tasks.get(task) if isinstance(tasks, dict) else None
    value = entry.get(key) if isinstance(entry, dict) else None
    known = number(value)
    return None if math.isnan(known) else known


def _retrieval_chart(runs: Sequence[RunRecord]) -> Chart | None:
    several = len(runs) > 1
    x = sorted({line["step"] for run in runs for line in run.scores})
    curves = []
    for place, run in enumerate(runs):
        by_step = {line["step"]: line for line in run.scores}
        names = dict.fromkeys(n for line in run.scores for n in line["metrics"])
        pairs = [(n, found.groups()) for n in names if (found := _RETRIEVAL.fullmatch(n))]
        pairs = pairs[:_MOST_PAIRS]
        for index, (name, (query, gallery)) in enumerate(pairs):
            bounds = [_bounds(by_step.get(step), name) for step in x]
            label = f"{_CHOICES.get(query, query)} finds {_CHOICES.get(gallery, gallery)}"
            curves.append(
                Curve(
                    f"{run.name}, {label}" if several else label,
                    [_metric(by_step.get(step), name) for step in x],
                    place if several else index,
                    index,
                    low=[b and b[0] for b in bounds] if any(bounds) else None,
                    high=[b and b[1] for b in bounds] if any(bounds) else None,
                    points=True,
                )
            )
    if not curves:
        return None
    note = "Share of the tiles that another sensor finds again among its 10 nearest."
    return Chart("Retrieval: recall@10", x, curves, note=note, marks=_best(runs), limits=(0, 1))


def _heat(line: Mapping[str, Any], name: str) -> Heat | None:
    """Who finds whom, of one validation."""
    found = {
        match.groups(): value
        for key, value in line["metrics"].items()
        if (match := _RETRIEVAL.fullmatch(key))
    }
    if not found:
        return None
    queries = list(dict.fromkeys(query for query, _ in found))[:_MOST_PAIRS]
    galleries = list(dict.fromkeys(gallery for _, gallery in found))[:_MOST_PAIRS]
    notes = []
    for query in queries:
        row = []
        for gallery in galleries:
            candidates = _queries(line, f"{query}-to-{gallery}", "candidates")
            if candidates and (query, gallery) in found:
                row.append(f"chance {100 * min(1, 10 / candidates):.0f} %")
            else:
                row.append("")
        notes.append(row)
    return Heat(
        f"{name}Retrieval between sensors at step {line['step']:,} (recall@10)",
        "query ↓ found →",
        [_CHOICES.get(q, q) for q in queries],
        [_CHOICES.get(g, g) for g in galleries],
        [[found.get((q, g)) for g in galleries] for q in queries],
        notes,
    )


def _classes(line: Mapping[str, Any], name: str) -> Table | None:
    """Each class's share, the tail marked."""
    per_class = line.get("per_class", {})
    choices = [choice for choice in _CHOICES if choice in per_class]
    if not choices:
        return None
    tail = set(line.get("tail", []))
    classes = dict.fromkeys(c for choice in choices for c in per_class[choice])
    rows: list[list[Cell]] = []
    ordered = sorted(classes, key=lambda c: (c in tail, c))
    for one in ordered[:_MOST_CLASSES]:
        counts = [per_class[choice].get(one, {}).get("n") for choice in choices]
        row: list[Cell] = [one, "tail" if one in tail else "", next(filter(None, counts), None)]
        for choice in choices:
            found = per_class[choice].get(one, {})
            share, n = found.get("knn20"), found.get("n", 0)
            if share is None:
                row.append(None)
                continue
            low, high = interval(share, n)
            row.append(f"{share:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    return Table(
        f"{name}kNN accuracy of each class at step {line['step']:,}, 95 % intervals",
        ["class", "group", "images", *(_CHOICES[choice] for choice in choices)],
        rows,
        marked={n for n, row in enumerate(rows) if row[1]},
    )

"""A sweep as one self-contained page: no server, no script, no file beside it."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from terrafm.config import Config
from terrafm.storage import join, read_bytes, write_bytes
from tuning import figures
from tuning.analysis import Findings, best_yaml, find, is_missing
from tuning.objective import HEADLINES, MEASURES, titled
from tuning.trials import STATES

BEST_FILE, REPORT_FILE = "best.yaml", "report.html"
_PICTURES = "pictures"


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
        write_report(output, findings)
    states = findings.table["state"].value_counts().to_dict()
    return {str(state): int(count) for state, count in states.items()}, best


def write_report(output: str, findings: Findings) -> None:
    """Writes report.html, and the pictures in it also as PNGs.

    Args:
        output: URI of the sweep's folder.
        findings: what it tells.
    """
    template = resources.files("tuning") / "report.html.j2"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template.read_text("utf-8")).render(
        output=output,
        objective=titled(findings.objective),
        meaning=MEASURES[findings.objective],
        states=[
            (state, int(count), STATES[str(state)])
            for state, count in findings.table["state"].value_counts().items()
        ],
        step=int(findings.table["steps"].max()),
        best=findings.best,
        best_yaml=best_yaml(findings, findings.best) if findings.best else "",
        measures=[(name, titled(name)) for name in HEADLINES],
        pictures=_draw(output, findings),
        importance=bool(findings.importance),
        arms=bool(findings.config.tune.arms),
        differences=_differences(findings.differences),
        keys=findings.keys,
        points=_points(findings),
        trials=_trials(findings),
        seconds=float(findings.table["seconds"].sum()),
    )
    write_bytes(join(output, REPORT_FILE), page.encode())


def _draw(output: str, findings: Findings) -> list[dict[str, str]]:
    """Title, explanation and content of each picture that there is something for."""
    folder = join(output, _PICTURES)
    drawn: list[tuple[str, str, str]] = []

    def path(name: str) -> str:
        return join(folder, f"{name}.png")

    if findings.config.tune.arms:
        figures.arms(findings, path("arms"))
        drawn.append(("arms", "Arms", "Mean and standard deviation over seeds."))
    if figures.responses(findings, path("responses")):
        drawn.append(
            (
                "responses",
                "How accuracy answers to each setting",
                f"At step {findings.common_step}, head and tail classes apart. Points joined by a "
                "line differ in nothing else; bars are standard deviations over seeds.",
            )
        )
    if findings.importance:
        figures.importance(findings, path("importance"))
        drawn.append(
            (
                "importance",
                "What matters",
                f"Share of the variance at step {findings.common_step} that a setting explains "
                "(fANOVA); bars are standard deviations over trials drawn anew with replacement.",
            )
        )
    if figures.parallel_coordinates(findings, path("parallel")):
        text = f"A line is a point at step {findings.common_step}; the last axis is the result."
        drawn.append(("parallel", "All points", text))
    figures.learning_curves(findings, path("curves"))
    drawn.append(
        (
            "curves",
            "How trials learned",
            "Trials of one point share a colour; marks say how they ended.",
        )
    )
    return [
        {
            "title": title,
            "text": text,
            "content": base64.b64encode(read_bytes(path(name))).decode(),
        }
        for name, title, text in drawn
    ]


def _points(findings: Findings) -> list[dict[str, Any]]:
    if findings.points.empty:
        return []
    ordered = findings.points.sort_values(findings.objective, ascending=False)
    return [
        {
            "point": int(row["point"]),
            "arm": row["arm"],
            "n": int(row["n"]),
            "measures": [_with_spread(row, name) for name in HEADLINES],
            "set": [_short(row[key]) for key in findings.keys],
        }
        for _, row in ordered.iterrows()
    ]


def _trials(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "trial": int(row["trial"]),
            "point": int(row["point"]),
            "seed": int(row["seed"]),
            "state": row["state"],
            "alarm": row["alarm"] or row.get("failure") or "",
            "steps": int(row["steps"]),
            "seconds": f"{row['seconds']:.0f}",
            "measures": [_number(row.get(name)) for name in HEADLINES],
        }
        for _, row in findings.table.iterrows()
    ]


def _differences(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "arm": row["arm"],
            "measure": titled(row["measure"]),
            "n": int(row["n"]),
            "difference": f"{100 * row['difference']:+.1f}",
            "interval": "one pair: no interval"
            if is_missing(row["low"])
            else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
            "clear": bool(row["low"] > 0 or row["high"] < 0),
        }
        for _, row in frame.iterrows()
    ]


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
    return f"{value:.4g}" if isinstance(value, float) else str(value)

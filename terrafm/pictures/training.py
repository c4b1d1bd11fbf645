"""How a run learns."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.pictures.figure import SAFE_COLOURS, picture
from terrafm.storage import exists, read_json_lines
from terrafm.storage.records import StepLine


def loss_curve(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws a run's loss, entropies, signs of collapse and schedules over its steps.

    Args:
        metrics: URI of the run's metrics.jsonl.
        path: URI of the PNG.

    Raises:
        UsageError: the file does not exist or holds no step.
    """
    lines = _read_metrics(metrics)
    steps = np.array([line["step"] for line in lines])
    panels: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
        ("Loss (nats)", (("loss", "loss"),)),
        ("Entropy (nats)", (("teacher_entropy", "teacher"), ("student_entropy", "student"))),
        ("Prototypes used (perplexity)", (("prototype_perplexity", "perplexity"),)),
        ("Effective rank", (("effective_rank", "effective rank"),)),
        ("Learning rate", (("lr", "learning rate"),)),
        ("Teacher temperature", (("teacher_temp", "teacher temperature"),)),
    )
    with picture(path, (9.5, 7.6)) as figure:
        axes = figure.subplots(3, 2, sharex=True, height_ratios=(1.6, 1, 1))
        for axis, (title, curves) in zip(axes.ravel(), panels, strict=True):
            for number, (key, label) in enumerate(curves):
                values = np.array([_number(line.get(key)) for line in lines])
                colour = SAFE_COLOURS[number]
                marker = "." if len(steps) <= 120 else ""
                few = 12 * len(curves) > len(steps) or key in ("lr", "teacher_temp")
                axis.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.2 if few else 0.7,
                    alpha=1.0 if few else 0.45,
                    marker=marker,
                    markersize=3,
                    label=label if few else None,
                    linestyle="-" if number == 0 or not few else "--",
                )
                if not few:
                    axis.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=label)
            axis.set_title(title, loc="left")
            axis.grid(color="#e3e8ed", linewidth=0.6)
            axis.tick_params(length=0)
            if len(curves) > 1:
                axis.legend(fontsize=8)
        for axis in axes[-1]:
            axis.set_xlabel("step")
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        figure.tight_layout()


def _read_metrics(uri: str | os.PathLike[str]) -> list[dict[str, Any]]:
    if not exists(uri):
        raise UsageError(f"metrics {os.fspath(uri)} do not exist")
    lines = read_json_lines(os.fspath(uri), kind=StepLine)
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise UsageError(f"metrics {os.fspath(uri)} hold no step")
    return steps


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    width = max(3, len(values) // 20) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")

"""Where a step's time goes, and the line of metrics.jsonl that says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from terrafm.train.schedules import StepSettings
from terrafm.train.student_teacher import SelfDistillation, StepStatistics


class StepTimer:
    """Adds up waiting for data and all time since the last line."""

    def __init__(self) -> None:
        self._reset()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time inside the block counts as data wait."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step_done(self, samples: int) -> None:
        """Counts a finished step."""
        self._samples += samples

    def take(self) -> dict[str, float]:
        """Tiles per second and the share of the time spent waiting; starts afresh."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rates = {
            "tiles_per_second": round(self._samples / seconds, 3),
            "data_wait": round(self._waited / seconds, 4),
        }
        self._reset()
        return rates

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._samples = 0


def reduce_statistics(statistics: StepStatistics) -> StepStatistics:
    """Sums over all ranks; collective where a process group exists."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(statistics.sums)
    return statistics


def metrics_line(
    step: int,
    statistics: StepStatistics,
    settings: StepSettings,
    distillation: SelfDistillation,
    *,
    grad_norm: float,
    skipped: int,
) -> dict[str, Any]:
    """What one step did; `step` counts finished steps, entropies are in nats."""
    criterion = distillation.criterion
    return {
        "step": step,
        **statistics.means(),
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "momentum": settings.teacher_momentum,
        "teacher_temp": settings.teacher_temp,
        "grad_norm": grad_norm,
        "center_norm": float(criterion.center.norm()),
        "center_high_frequency_norm": float(criterion.center_high_frequency.norm()),
        "skipped_steps": skipped,
    }

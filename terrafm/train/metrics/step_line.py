"""The line of metrics.jsonl: what a step did, how fast, and where the time went."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from terrafm.config import Config
from terrafm.train.metrics.bottleneck import Bottleneck
from terrafm.train.metrics.flops import device_peak, sample_flops
from terrafm.train.step.collapse import CollapseAlarm
from terrafm.train.step.schedules import Schedules, StepSettings
from terrafm.train.step.timer import StepTimer, Window
from terrafm.train.step.training_step import StepStatistics, TrainingStep


@dataclass(frozen=True)
class Rates:
    """Throughput and use of the devices.

    Attributes:
        flops: operations of one sample.
        workers: number of ranks.
        peak: operations per second of one device; None where it is not known.
        device: of this rank.
    """

    flops: float
    workers: int
    peak: float | None
    device: torch.device

    @classmethod
    def of(
        cls, config: Config, workers: int, device: torch.device, teacher: str | None = None
    ) -> Rates:
        """The rates of a run on `workers` devices like this one; see `sample_flops`."""
        return cls(sample_flops(config, teacher).total, workers, device_peak(device), device)

    def line(self, window: Window) -> dict[str, Any]:
        """Tiles/s, FLOP/s, MFU, shares of the time, memory."""
        tiles = window.samples / window.seconds
        each = tiles / self.workers
        figures: dict[str, Any] = {
            "tiles_per_second": round(tiles, 3),
            "tiles_per_second_per_worker": round(each, 3),
            "tflops_per_worker": round(each * self.flops / 1e12, 4),
        }
        if self.peak is not None:
            figures["mfu"] = round(each * self.flops / self.peak, 4)
        shares = dict(window.shares)
        figures["data_wait"] = shares.pop("data")
        figures |= {f"share_{name}": share for name, share in shares.items()}
        figures["memory_bytes"] = peak_process_bytes()
        if self.device.type == "cuda":
            figures["device_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return figures


class Monitor:
    """Times a rank's steps, and completes its lines of metrics.jsonl.

    Args:
        config: of the run.
        schedules: of the run, for the warm-up.
        workers: number of ranks.
        device: of this rank.
        teacher: architecture of a frozen teacher; None where the student's average teaches.

    Attributes:
        timer: of the steps.
    """

    def __init__(
        self,
        config: Config,
        schedules: Schedules,
        workers: int,
        device: torch.device,
        teacher: str | None = None,
    ) -> None:
        self.timer = StepTimer(device)
        self._rates = Rates.of(config, workers, device, teacher)
        self._bottleneck = Bottleneck()
        # A frozen teacher cannot collapse, and uses no prototypes.
        prototypes = config.head.num_prototypes if teacher is None else 1
        self._alarm = CollapseAlarm.of(prototypes, schedules)

    def complete(self, line: dict[str, Any]) -> dict[str, Any]:
        """Adds the time, rates and shares since the last line, the bottleneck, alarms that hold."""
        window = self.timer.take()
        line = line | {"time": round(time.time(), 3)}
        line = line | self._rates.line(window) | self._bottleneck.judge(window)
        return line | self._alarm.judge(line)


def peak_process_bytes() -> int:
    """Largest resident memory of this process since it began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reduce_statistics(statistics: StepStatistics) -> StepStatistics:
    """Sums over all ranks; collective where a process group exists."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(statistics.sums)
    return statistics


def metrics_line(
    step: int,
    statistics: StepStatistics,
    settings: StepSettings,
    distillation: TrainingStep,
    *,
    grad_norm: float,
    skipped: int,
) -> dict[str, Any]:
    """What one step did; `step` counts finished steps, entropies are in nats."""
    rank = distillation.teacher_features.effective_rank()
    return {
        "step": step,
        **statistics.means(),
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "momentum": settings.teacher_momentum,
        "teacher_temp": settings.teacher_temp,
        "grad_norm": grad_norm,
        **distillation.figures(),
        **({} if rank is None else {"effective_rank": round(rank, 3)}),
        "skipped_steps": skipped,
    }

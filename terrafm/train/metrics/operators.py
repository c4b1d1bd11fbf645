"""What Ray's Prometheus endpoint tells of a run, for those who operate the cluster.

Ray puts `ray_` before each name, and exports from each node what its processes report. Nothing is
reported where Ray exports nothing: a Ray that a command starts for itself opens no such port, since
it would answer whoever asks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Gauge, Histogram

from terrafm.storage.addresses import without_secrets
from terrafm.train.advice import ALARMS

# Key of a line of metrics.jsonl -> the gauge, and what it is.
GAUGES = {
    "step": ("terrafm_step", "Finished optimizer steps."),
    "loss": ("terrafm_loss_nats", "Cross-entropy between teacher and student."),
    "teacher_entropy": ("terrafm_teacher_entropy_nats", "Of the teacher's distributions, mean."),
    "student_entropy": ("terrafm_student_entropy_nats", "Of the student's distributions, mean."),
    "prototype_perplexity": ("terrafm_prototype_perplexity", "Prototypes that the teacher uses."),
    "effective_rank": ("terrafm_effective_rank", "Directions of the teacher's features."),
    "grad_norm": ("terrafm_gradient_norm", "Global norm before clipping."),
    "lr": ("terrafm_learning_rate", "Of the newest step."),
    "skipped_steps": ("terrafm_skipped_steps", "Left out, not finite, since the workers began."),
    "tiles_per_second": ("terrafm_tiles_per_second", "Of all workers."),
    "mfu": ("terrafm_mfu_ratio", "Model FLOPs utilisation, 0 to 1; of known GPUs only."),
    "data_wait": ("terrafm_data_wait_ratio", "Share of the time in which rank 0 waits for data."),
    "share_checkpoint": (
        "terrafm_checkpoint_wait_ratio", "Share of the time in which training waits for saving.",
    ),
    "memory_bytes": ("terrafm_process_memory_bytes", "Peak resident memory of rank 0."),
    "device_memory_bytes": ("terrafm_device_memory_bytes", "Peak memory of rank 0's GPU."),
}  # fmt: skip

# Event after which workers are started again -> why.
_REASONS = {"lost": "failure", "stopped": "resize"}

# What is no number of a line.
_OTHERS = {
    "terrafm_total_steps": ("Optimizer steps of the whole run.", ()),
    "terrafm_workers": ("Ranks that train.", ()),
    "terrafm_alarm": ("1 while an alarm holds.", ("alarm",)),
    "terrafm_restarts": ("Of the workers since the run began.", ("reason",)),
}
# Ray (2.60) exports a gauge only where it was set since the export before, and drops it after two
# exports without: 20 s, and some lines of metrics.jsonl are further apart.
_REPEAT_SECONDS = 3.0

# Seconds of a checkpoint's write and upload: of a small model on a disk to a large one in a store.
_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0]


def is_exported() -> bool:
    """Whether the Ray of this process exports metrics; its setting is inherited from the node."""
    return os.environ.get("RAY_enable_metrics_collection", "1").lower() not in ("0", "false")  # noqa: SIM112


class _Gauges:
    """Gauges of one run, reported again and again until `close`.

    Args:
        run_folder: URI of the run, the tag `run`.
    """

    def __init__(self, run_folder: str) -> None:
        self.tags = {"run": without_secrets(run_folder)}
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if is_exported():
            self._thread = threading.Thread(target=self._repeat, name="metrics", daemon=True)
            self._thread.start()

    def set(self, name: str, value: float, **tags: str) -> None:
        """Reports a value from now on; nothing where Ray exports nothing."""
        if self._thread is None:
            return
        with self._lock:
            if name not in self._gauges:
                known = dict(GAUGES.values())
                description, further = _OTHERS.get(name) or (known[name], ())
                self._gauges[name] = Gauge(name, description, tag_keys=("run", *further))
            self._values[name, tuple(tags.items())] = value
            self._report(name, tuple(tags.items()))

    def close(self) -> None:
        """Reports nothing any more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _report(self, name: str, tags: tuple[tuple[str, str], ...]) -> None:
        self._gauges[name].set(self._values[name, tags], tags=self.tags | dict(tags))

    def _repeat(self) -> None:
        while not self._end.wait(_REPEAT_SECONDS):
            with self._lock:
                for name, tags in self._values:
                    self._report(name, tags)


class WorkerMetrics:
    """What rank 0 reports.

    Args:
        run_folder: URI of the run, the tag `run` of all that is reported.
        total_steps: of the whole run.
        workers: ranks of this group.
    """

    def __init__(self, run_folder: str, total_steps: int, workers: int) -> None:
        self._gauges = _Gauges(run_folder)
        self._gauges.set("terrafm_total_steps", float(total_steps))
        self._gauges.set("terrafm_workers", float(workers))
        self._seconds: Histogram | None = None
        if is_exported():
            self._seconds = Histogram(
                "terrafm_checkpoint_seconds",
                "Writing and uploading a checkpoint, beside training.",
                boundaries=_SECONDS,
                tag_keys=("run",),
            )

    def tell(self, line: Mapping[str, Any]) -> None:
        """Reports a line of metrics.jsonl; a value that it lacks stays as it was."""
        for key, (name, _) in GAUGES.items():
            if line.get(key) is not None:
                self._gauges.set(name, float(line[key]))
        for alarm in ALARMS:
            self._gauges.set("terrafm_alarm", float(alarm in line.get("alarm", ())), alarm=alarm)

    def checkpoint_written(self, seconds: float) -> None:
        """Reports a checkpoint that is complete."""
        if self._seconds is not None:
            self._seconds.observe(seconds, tags=self._gauges.tags)

    def close(self) -> None:
        """Reports nothing any more."""
        self._gauges.close()


class DriverMetrics:
    """What the driver reports: how often worker groups were started again, and why.

    Args:
        run_folder: URI of the run.
        events: what happened so far, also under earlier commands.
    """

    def __init__(self, run_folder: str, events: Sequence[Mapping[str, Any]]) -> None:
        self._gauges = _Gauges(run_folder)
        self._count = dict.fromkeys(_REASONS.values(), 0)
        for event in events:
            self.tell(str(event.get("event")))
        for reason, count in self._count.items():
            self._gauges.set("terrafm_restarts", float(count), reason=reason)

    def tell(self, event: str) -> None:
        """Reports an event of events.jsonl: `lost` and `stopped` count."""
        reason = _REASONS.get(event)
        if reason is not None:
            self._count[reason] += 1
            self._gauges.set("terrafm_restarts", float(self._count[reason]), reason=reason)

    def close(self) -> None:
        """Reports nothing any more."""
        self._gauges.close()

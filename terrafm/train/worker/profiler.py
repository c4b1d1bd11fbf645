"""A profiler's trace of a few steps, for Perfetto or chrome://tracing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from terrafm.storage import join, write_bytes

PROFILE_FOLDER = "profile"
TRACE_FILE = "trace.json"
OPERATORS_FILE = "operators.txt"
_OPERATORS = 25
# The first step allocates and compiles, the second pays for the profiler's own start.
_SKIPPED = 2


class StepProfiler:
    """Traces the steps after the first two of this process, then costs nothing.

    Writes `trace.json`, with the ranges `step/<phase>`, and `operators.txt`, the most expensive
    operators, into a folder. A run that ends sooner leaves what it has.

    Args:
        folder: URI of the folder.
        steps: how many are traced; 0 for none, and then nothing is done.
    """

    def __init__(self, folder: str, steps: int) -> None:
        self._folder = folder
        self._profile: profile | None = None
        if not steps:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_SKIPPED - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step_done(self) -> None:
        """Tells that a step is over."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """Ends the trace."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, finished: profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / TRACE_FILE
            finished.export_chrome_trace(str(trace))
            write_bytes(join(self._folder, TRACE_FILE), trace.read_bytes())
        averages = finished.key_averages()
        where = "device" if torch.cuda.is_available() else "cpu"
        table = averages.table(sort_by=f"self_{where}_time_total", row_limit=_OPERATORS)
        write_bytes(join(self._folder, OPERATORS_FILE), (table + "\n").encode())

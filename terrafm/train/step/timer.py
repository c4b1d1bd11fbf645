"""The phases of a step: what each one takes, on the clock of the device that does the work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

PHASES = ("data", "prepare", "teacher", "forward", "backward", "optimizer", "checkpoint")
"""Waiting for the batch; its copy to the device and normalisation; the teacher's forward pass,
moving average and centers; the student's forward pass and loss; its backward pass; reduction of
the gradients, clipping and update; saving."""

Phases = Callable[[str], AbstractContextManager[None]]
"""What a step calls around each of its phases; phases do not nest."""

# Events of a GPU held until they are read; a step of 16 micro-batches has about 130.
_MOST_OPEN = 2000


def untimed(_phase: str) -> AbstractContextManager[None]:
    """Phases that nobody times."""
    return nullcontext()


@dataclass(frozen=True)
class Window:
    """The steps since the last line.

    Attributes:
        seconds: by the wall clock.
        samples: trained on, over all workers.
        shares: phase -> share of the seconds, 0 to 1; "other" is what no phase took.
    """

    seconds: float
    samples: int
    shares: dict[str, float]


class StepTimer:
    """Adds up the phases of the steps since the last `take`.

    On a GPU the marks are events in its stream, so a phase lasts as long as the GPU was in it:
    "data" is the time in which the GPU had nothing to do. They are read when they are long past;
    nothing waits for them. Every phase also is a range `step/<phase>` in a profiler's trace.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock: _HostClock | _DeviceClock = (
            _DeviceClock() if device.type == "cuda" else _HostClock()
        )
        self._open: list[tuple[str, Any, Any]] = []
        self._reset()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time inside the block counts as the phase `name`, one of `PHASES`."""
        with torch.profiler.record_function(f"step/{name}"):
            begin = self._clock.mark()
            yield
            self._open.append((name, begin, self._clock.mark()))

    def step_done(self, samples: int) -> None:
        """Counts a finished step."""
        self._samples += samples
        if len(self._open) > _MOST_OPEN:
            self._settle()

    def take(self) -> Window:
        """What the phases took since the last call; starts afresh."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        if self._open:
            self._clock.wait(self._open[-1][2])
        self._settle()
        # Events and the wall clock differ by less than a step at both ends.
        whole = max(seconds, sum(self._spent.values()))
        shares = {name: round(self._spent[name] / whole, 4) for name in PHASES}
        shares["other"] = round(max(0.0, 1 - sum(self._spent.values()) / whole), 4)
        window = Window(seconds, self._samples, shares)
        self._reset()
        return window

    def _settle(self) -> None:
        """Adds up the marks that are past; those of a GPU that are not stay open."""
        marks, self._open = self._open, []
        for name, begin, end in marks:
            if self._clock.passed(end):
                self._spent[name] += self._clock.between(begin, end)
            else:
                self._open.append((name, begin, end))

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._samples = 0
        self._spent: defaultdict[str, float] = defaultdict(float)


class _HostClock:
    """Marks are seconds of the process's clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, _mark: float) -> bool:
        return True

    def wait(self, _mark: float) -> None:
        pass

    def between(self, begin: float, end: float) -> float:
        return end - begin


class _DeviceClock:
    """Marks are events in the current stream of a GPU."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1000

"""What holds a run up, by name, and what to change."""

from __future__ import annotations

from collections import deque

from terrafm.train.advice import BOTTLENECKS as BOTTLENECKS
from terrafm.train.step.timer import Window

# Below it, removing the whole share would win less than a factor of 1.18.
_NOTICEABLE = 0.15
# A checkpoint or a slow shard fills one line, not five minutes.
_MEMORY_SECONDS = 300.0
_LEAST_SECONDS = 10.0

COMPUTE = "compute"


class Bottleneck:
    """Names the largest share of the last minutes that is no computation.

    Args:
        memory_seconds: how far back shares count.
        least_seconds: before so much was seen nothing is named.
    """

    def __init__(
        self, memory_seconds: float = _MEMORY_SECONDS, least_seconds: float = _LEAST_SECONDS
    ) -> None:
        self._memory = memory_seconds
        self._least = least_seconds
        self._windows: deque[Window] = deque()
        self._started = False

    def judge(self, window: Window) -> dict[str, str | float]:
        """The name, `COMPUTE` where no share is noticeable, and the largest share so far.

        The first window is left out: it holds the start of the stream.
        """
        if not self._started:
            self._started = True
            return {}
        self._windows.append(window)
        while self._seconds() - self._windows[0].seconds >= self._memory:
            self._windows.popleft()
        seconds = self._seconds()
        if seconds < self._least:
            return {}
        shares = {
            name: sum(w.seconds * w.shares.get(name, 0.0) for w in self._windows) / seconds
            for name in BOTTLENECKS
        }
        name = max(shares, key=lambda name: shares[name])
        return {
            "bottleneck": name if shares[name] >= _NOTICEABLE else COMPUTE,
            "bottleneck_share": round(shares[name], 4),
        }

    def _seconds(self) -> float:
        return sum(window.seconds for window in self._windows)

"""How many machines a run asks an autoscaler for: all that it wants, or as many as can be had.

Ray's second autoscaler brings nothing at all where it cannot bring everything that is asked for,
by this run and by others: eight machines asked of a cluster that may have four are none. Whether
it refuses it tells after each of its rounds. So what it refuses is halved, until it agrees, and
more is tried again later: another run may have ended, or somebody has raised the limit.
"""

import math
import time
from collections.abc import Callable

from terrafm.ray.runtime import Autoscaler

# Ray forgets a request after 180 s.
_REPEAT_SECONDS = 20.0
# Each time more is tried in vain, Ray writes a warning into the driver's log.
_RETRY_SECONDS = 120.0
_LOOK_SECONDS = 1.0


class MachineDemand:
    """One run's request, repeated before it lapses.

    Args:
        send: asks for machines for so many workers; 0 withdraws.
        look: what the autoscaler says of its newest round; None where there is none.
        clock: seconds.
    """

    def __init__(
        self,
        send: Callable[[int], None],
        look: Callable[[], Autoscaler | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._look = look
        self._clock = clock
        self._wanted = 0
        self._asked = 0
        # The most that it agreed to, and the fewest that it refused, of what is wanted now.
        self._agreed, self._refused = 0, 1
        self._sent_at = self._looked_at = self._refused_at = -math.inf
        # The autoscaler's newest when the request was sent.
        self._round = 0

    def ask(self, workers: int, fewest: int = 0) -> None:
        """Asks for machines for `workers`, or for as many as can be had; to be called all the time.

        Args:
            workers: that are wanted beside those that run.
            fewest: no fewer are asked for.
        """
        now = self._clock()
        changed = workers != self._wanted
        if not changed and now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        seen = self._look()
        if seen is None:
            return
        asking = self._asked
        if changed:
            self._wanted = asking = workers
            self._agreed, self._refused = fewest, workers + 1
        elif seen.round >= self._round + 2:
            # The round after the one that may have begun before the request came.
            asking = self._next(seen.refuses, fewest, now)
        if asking != self._asked or (asking and now - self._sent_at >= _REPEAT_SECONDS):
            self._asked, self._sent_at, self._round = asking, now, seen.round
            self._send(asking)

    def _next(self, refuses: bool, fewest: int, now: float) -> int:
        """What to ask for after an answer to what was asked."""
        if refuses:
            if self._asked <= fewest:
                return self._asked
            # What was agreed to before may be refused now, for another has asked as well.
            self._agreed = self._agreed if self._agreed < self._asked else fewest
            self._refused, self._refused_at = self._asked, now
        else:
            self._agreed = self._asked
            if self._asked < self._wanted and now - self._refused_at >= _RETRY_SECONDS:
                self._refused, self._refused_at = self._wanted + 1, now
                return self._asked + 1
        return (self._agreed + self._refused) // 2

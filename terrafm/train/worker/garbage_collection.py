"""Python's garbage collector under control: at chosen steps, the same ones on all ranks."""

from __future__ import annotations

import gc


class GarbageControl:
    """Collects every n steps in place of whenever Python counts enough new objects.

    A collection in the middle of a step makes one rank late and all others wait for it, at other
    moments on every rank. What is alive at the start (modules, plans, imported libraries) is
    frozen: it stays, and looking through it is most of what a collection costs.

    Args:
        every: steps between collections.
    """

    def __init__(self, every: int = 50) -> None:
        self._every = every

    def start(self) -> None:
        """Takes over from Python; call it once everything that lasts is made."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def step_done(self, done: int) -> None:
        """Collects where `done` finished steps are a multiple of `every`."""
        if done % self._every == 0:
            gc.collect()

    def stop(self) -> None:
        """Gives everything back to Python."""
        gc.unfreeze()
        gc.enable()

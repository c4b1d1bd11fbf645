"""What the driver and the ranks of one worker group tell each other while they train.

Ranks say twice a second where they are; the driver answers with an order: to save and stop, or
to end at once because another rank hangs. The actor between them imports no torch: its process
starts with every worker group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CONTINUE, STOP, END = "continue", "stop", "end"
STARTING = "starting"


@dataclass(frozen=True)
class Beat:
    """Where a rank is.

    Attributes:
        rank: of the worker group.
        node: id of its node.
        host: name of its node, for people.
        process: its id.
        step: finished steps.
        phase: what it does now.
        since: seconds since 1970 when this phase began, by its own clock.
        came: seconds since 1970 when the last word of it came.
    """

    rank: int
    node: str
    host: str
    process: int
    step: int
    phase: str
    since: float
    came: float = 0.0


class Control:
    """The ranks' last words, and the driver's order; a Ray actor on the driver's node."""

    def __init__(self) -> None:
        self._order = CONTINUE
        self._beats: dict[int, Beat] = {}

    def beat(self, beat: Mapping[str, Any]) -> str:
        """Takes a rank's word, answers with the order in force."""
        self._beats[beat["rank"]] = Beat(**(dict(beat) | {"came": time.time()}))
        return self._order

    def order(self, order: str) -> None:
        """Sets the order; one to end stays."""
        if self._order != END:
            self._order = order

    def beats(self) -> list[Beat]:
        """Of all ranks that have spoken, by rank."""
        return [self._beats[rank] for rank in sorted(self._beats)]


def start_control() -> Any:
    """A `Control` on this node, whose loss would end the driver as well."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Control).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote()

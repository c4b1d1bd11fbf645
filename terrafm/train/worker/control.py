"""What the driver and the ranks of one worker group tell each other while they train.

Ranks say twice a second where they are; the driver answers with an order: to save and stop, or
to end at once because another rank hangs. The actor between them imports no torch: its process
starts with every worker group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from terrafm.ray.standby import start_standby

CONTINUE, STOP, END = "continue", "stop", "end"
STARTING = "starting"
# This actor, Ray Train's controller, and its three actors.
_HELPERS = 5


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
        self._warnings: list[tuple[int, str]] = []

    def beat(self, beat: Mapping[str, Any], warnings: Sequence[str] = ()) -> str:
        """Takes a rank's word and its warnings, answers with the order in force."""
        self._beats[beat["rank"]] = Beat(**(dict(beat) | {"came": time.time()}))
        self._warnings += [(beat["rank"], text) for text in warnings]
        return self._order

    def order(self, order: str) -> None:
        """Sets the order; one to end stays."""
        if self._order != END:
            self._order = order

    def start_standby(self) -> None:
        """Processes for the next `Control` and for what Ray Train starts on this node."""
        start_standby(_HELPERS)

    def beats(self) -> list[Beat]:
        """Of all ranks that have spoken, by rank."""
        return [self._beats[rank] for rank in sorted(self._beats)]

    def take_warnings(self) -> list[tuple[int, str]]:
        """Rank and text of each warning, once."""
        taken, self._warnings = self._warnings, []
        return taken


def start_control(variables: Mapping[str, str]) -> Any:
    """A `Control` on this node, whose loss would end the driver as well.

    Args:
        variables: of its runtime environment.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Control).options(
        num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": dict(variables)}
    )
    return actor.remote()

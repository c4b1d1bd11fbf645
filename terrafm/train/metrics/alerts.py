"""What a run's lines have to say to the person at the terminal, once for each occasion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terrafm.train.advice import ALARMS, BOTTLENECKS
from terrafm.train.metrics.bottleneck import COMPUTE


class Alerts:
    """Turns alarms, bottlenecks and failed trackers of successive lines into sentences.

    Each is told when it appears, and again only after it was gone.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def new(self, line: Mapping[str, Any]) -> list[str]:
        """Sentences for a line of metrics.jsonl; empty where nothing is new."""
        current = {
            name: f"step {line['step']}: {_figures(name, line)}{ALARMS[name]}"
            for name in line.get("alarm", ())
        }
        name = line.get("bottleneck", COMPUTE)
        if name != COMPUTE:
            share = f"{line['bottleneck_share']:.0%}"
            current[name] = f"step {line['step']}: {share} of the time is {BOTTLENECKS[name]}"
        for tracker, reason in line.get("trackers_off", {}).items():
            current[tracker] = (
                f"step {line['step']}: {tracker} takes no more metrics ({reason}); training goes "
                "on, and metrics.jsonl has them all"
            )
        news = [sentence for name, sentence in current.items() if name not in self._told]
        self._told = set(current)
        return news


def _figures(name: str, line: Mapping[str, Any]) -> str:
    keys = {
        "loss_at_chance": "loss",
        "falling_rank": "effective_rank",
        "few_prototypes": "prototype_perplexity",
        "falling_perplexity": "prototype_perplexity",
    }
    key = keys.get(name, "teacher_entropy")
    return f"{key} {line[key]:.3g}: " if line.get(key) is not None else ""

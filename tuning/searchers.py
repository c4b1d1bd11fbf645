"""Optuna for Ray Tune: conditional spaces, several objectives, several runs of a point."""

from __future__ import annotations

import pickle
from typing import Any

import optuna
from ray.tune.search import Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch
from typing_extensions import override

from terrafm.config import TuneConfig
from tuning.search_space import SearchSpace


class SeedRepeater(Repeater):  # type: ignore[misc]
    """Runs each of a searcher's points several times and tells it the mean.

    Ray's own forgets, when an interrupted sweep goes on, which points are not told yet.
    """

    @override
    def save(self, checkpoint_path: str) -> None:
        super().save(checkpoint_path + ".searcher")
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.get_state(), file)

    @override
    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path + ".searcher")
        with open(checkpoint_path, "rb") as file:
            # Written by `save` into the sweep's own folder, beside what Ray Tune unpickles itself.
            self.set_state(pickle.load(file))  # nosec B301


def optuna_searcher(space: SearchSpace, settings: TuneConfig, seed: int) -> Searcher:
    """TPE over a space; with several objectives it looks for the Pareto front.

    Args:
        space: what trials draw from, conditions included.
        settings: objectives, seeds.
        seed: of the search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    several = len(settings.objectives) > 1
    searcher: Any = OptunaSearch(
        space.suggest,
        metric=list(settings.objectives) if several else settings.objectives[0],
        mode=["max"] * len(settings.objectives) if several else "max",
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    return SeedRepeater(searcher, repeat=settings.seeds) if settings.seeds > 1 else searcher

"""What a sweep will try, checked before anything starts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from terrafm.config import Config
from terrafm.errors import UsageError
from terrafm.train.driver.checks import check_runs
from terrafm.train.worker.setup import TrainingSetup
from tuning.objective import HEADLINES
from tuning.search_space import Point, SearchSpace, apply

_OBJECTIVES = (*HEADLINES, "effective_rank")
# What trials may change on the way: nothing that another trial's tensors or samples depend on.
_CHANGEABLE = ("loss.", "optim.", "model.drop_path", "data.keep_probability")
_SEEDS_END = 2**63


class TrialPlan:
    """The points of a sweep and the length of their runs.

    Args:
        config: the tree, with its `tune` section.
        data: URI of the dataset.

    Attributes:
        config: the same.
        space: None where there are arms.
        points: those that are known ahead; None where a searcher draws them on the way.
        total_steps: of each trial where a scheduler compares them, else of the configuration.

    Raises:
        UsageError: settings that do not fit together, a key or value that does not exist, what
            would change nothing, or no dataset.
    """

    def __init__(self, config: Config, data: str) -> None:
        self.config = config
        self._data = data
        check_settings(config)
        self.space = None if config.tune.arms else SearchSpace.of(config)
        self.points = self._points()
        self._trials = [apply(config, point, f"trial with {point}") for point in self.points or []]
        self._check_seeds()
        self._check_epochs()
        self.total_steps = check_runs(config, data)
        lengths = {check_runs(trial, data) for trial in self._trials}
        if config.tune.scheduler != "none":
            self._check_lengths(lengths)
            self._check_scheduler()

    def _points(self) -> list[Point] | None:
        settings = self.config.tune
        if settings.arms:
            return list(settings.arms.values())
        assert self.space is not None
        if settings.search == "grid":
            return self.space.grid()
        if settings.search == "random" and settings.scheduler != "pbt":
            return self.space.random(settings.trials, self.config.train.seed)
        return None

    @cached_property
    def _swept(self) -> dict[str, list[Any]]:
        """Key -> values that stand for all that are tried."""
        if self.space is not None:
            return {d.key: d.ends() for d in self.space.distributions}
        found: dict[str, list[Any]] = {}
        for arm in self.config.tune.arms.values():
            for key, value in arm.items():
                found.setdefault(key, []).append(value)
        return found

    def _check_seeds(self) -> None:
        seeds = self.config.tune.seeds
        if "train.seed" in self._swept and seeds > 1:
            raise UsageError(
                f"train.seed is swept, and tune.seeds={seeds} runs each point with the seeds that "
                "follow: leave one of them out"
            )
        highest = max(trial.train.seed for trial in [self.config, *self._trials])
        if highest + seeds > _SEEDS_END:
            raise UsageError(f"train.seed={highest} leaves no room for tune.seeds={seeds}")

    def _check_epochs(self) -> None:
        """Refuses to sweep epochs that `train.steps` overrides."""
        known = zip(self.points or [], self._trials, strict=True)
        idle = any("train.epochs" in point and trial.train.steps for point, trial in known)
        if self.points is None and "train.epochs" in self._swept:
            idle = self.config.train.steps is not None
        if idle:
            raise UsageError(
                "train.epochs is swept, and train.steps overrides it: set train.steps=none"
            )

    def _check_lengths(self, lengths: set[int]) -> None:
        """Schedulers compare trials at equal steps: that says something at equal lengths only."""
        alone = self._lengths_by_key()
        if len(lengths) > 1 or (alone and not lengths):
            told = sorted(lengths or set().union(*alone.values()))
            raise UsageError(
                f"tune.scheduler={self.config.tune.scheduler} compares trials at equal steps, and "
                f"{', '.join(alone or self._swept)} would make them differ in length ({told[0]} to "
                f"{told[-1]} steps): leave that out, or set tune.scheduler=none"
            )
        if lengths:
            (self.total_steps,) = lengths

    def _lengths_by_key(self) -> dict[str, set[int]]:
        """The keys that change a run's length by themselves, with the lengths they give it."""
        setup = TrainingSetup.open(self.config, self._data)
        found = {key: {self.total_steps} for key in self._swept}
        for key, values in self._swept.items():
            for value in values:
                # An arm may hold what is allowed only beside its other settings.
                with suppress(UsageError):
                    run = apply(self.config, {key: value}, "trial")
                    found[key].add(replace(setup, config=run).total_steps)
        return {key: steps for key, steps in found.items() if len(steps) > 1}

    def _check_scheduler(self) -> None:
        settings = self.config.tune
        every = max(t.train.checkpoint_every for t in self._trials or [self.config])
        if every >= self.total_steps:
            raise UsageError(
                f"tune.scheduler={settings.scheduler} acts at checkpoints, and there is only the "
                f"last one: set train.checkpoint_every below {self.total_steps}"
            )
        if self.space is not None and settings.scheduler == "pbt":
            for distribution in self.space.distributions:
                if not distribution.key.startswith(_CHANGEABLE) or distribution.when:
                    raise UsageError(
                        f"tune.space {distribution.key} cannot change in flight, as pbt wants: "
                        f"only keys of {', '.join(_CHANGEABLE)} without `when` can"
                    )


def check_settings(config: Config) -> None:
    """Whether the settings of a sweep go together.

    Raises:
        UsageError: names those that do not.
    """
    settings = config.tune
    if not isinstance(config.train.workers, int):
        raise UsageError("in a sweep train.workers is one number: trials share the machines")
    if unknown := [name for name in settings.objectives if name not in _OBJECTIVES]:
        raise UsageError(
            f"tune.objectives: there is no {unknown[0]!r}; there are {', '.join(_OBJECTIVES)}"
        )
    searched = settings.search == "optuna"
    stopping = settings.scheduler != "none"
    clashes = {
        "the objective effective_rank is of the log: set train.log_every no higher than "
        "train.checkpoint_every": (
            "effective_rank" in settings.objectives
            and config.train.log_every > config.train.checkpoint_every
        ),
        "tune.arms are tried as they are: leave out tune.space and tune.search": (
            settings.arms and (settings.space is not None or settings.search != "random")
        ),
        "several tune.objectives need tune.search=optuna, no scheduler and one seed": (
            len(settings.objectives) != 1
            and not (searched and not stopping and settings.seeds == 1)
        ),
        "optuna with several seeds needs tune.scheduler=none: it learns from means": (
            searched and settings.seeds > 1 and stopping
        ),
        "tune.scheduler=pbt needs tune.search=random, a tune.space and one seed": (
            settings.scheduler == "pbt"
            and (settings.search != "random" or settings.arms or settings.seeds > 1)
        ),
    }
    for sentence, clash in clashes.items():
        if clash:
            raise UsageError(sentence)

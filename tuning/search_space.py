"""What a sweep may change: named spaces, and distributions over any key of the configuration.

A space maps keys to distributions, in YAML:

    loss.alpha: {uniform: [0, 1]}
    optim.base_lr: {loguniform: [1.0e-5, 1.0e-3]}
    data.local_crops: {integer: [2, 8]}             # both ends are possible
    optim.weight_decay: {quantised: [0, 0.2, 0.01]} # 0, 0.01, 0.02, ...
    head.num_prototypes: {choice: [1024, 4096]}     # `grid` is the same, for a grid search
    model.num_queries: {choice: [1, 5], when: {data.fusion: true}}

A key with `when` is drawn only where the other keys have these values; elsewhere it keeps the
value of the configuration.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from ray import tune

from terrafm.config import Config, build_config, settings, yaml_number
from terrafm.errors import UsageError

Point = dict[str, Any]
"""Values of the keys that differ from the configuration."""

SPACES: dict[str, dict[str, Any]] = {
    # How much the frequent classes are taken out of the teacher's logits, and how fast.
    "centering": {
        "loss.alpha": {"uniform": [0.0, 1.0]},
        "loss.center_momentum": {"choice": [0.8, 0.9, 0.95, 0.99]},
        "loss.high_frequency_center_momentum": {"choice": [0.8, 0.9, 0.95, 0.99]},
        "loss.high_frequency_threshold": {"choice": [0.5, 1.0, 1.5, 2.0]},
    },
    # How sharp both distributions are, how far the teacher lags, over how many prototypes.
    "loss": {
        "loss.student_temp": {"uniform": [0.05, 0.2]},
        "loss.warmup_teacher_temp": {"uniform": [0.02, 0.05]},
        "loss.teacher_temp": {"uniform": [0.03, 0.08]},
        "optim.teacher_momentum": {"choice": [0.98, 0.99, 0.996, 0.999]},
        "head.num_prototypes": {"choice": [1024, 4096, 16384, 65536]},
    },
    # Which tiles are seen how often.
    "sampling": {
        "data.resample_exponent": {"uniform": [0.0, 1.0]},
        "data.water_keep": {"loguniform": [0.01, 1.0]},
    },
    # What a view holds.
    "modality": {
        "data.keep_probability": {"uniform": [0.2, 0.9], "when": {"data.fusion": True}},
        "data.fusion": {"choice": [True, False]},
        "model.num_queries": {"integer": [1, 8], "when": {"data.fusion": True}},
    },
    # How fast it learns, and what holds it back.
    "optimisation": {
        "optim.base_lr": {"loguniform": [1e-4, 1e-2]},
        "optim.weight_decay": {"loguniform": [0.01, 0.2]},
        "model.drop_path": {"quantised": [0.0, 0.3, 0.05]},
        "data.local_crops": {"integer": [2, 10]},
    },
}
"""Name of a space -> its keys with their distributions."""

# Kind -> number of arguments; None for a list of values.
_KINDS = {
    "uniform": 2,
    "loguniform": 2,
    "quantised": 3,
    "integer": 2,
    "choice": None,
    "grid": None,
}


@dataclass(frozen=True)
class Distribution:
    """Values of one key.

    Attributes:
        key: of the configuration, "section.key".
        kind: one of uniform, loguniform, quantised, integer, choice, grid.
        values: the two ends (with the step of quantised), or all values of choice and grid.
        when: key -> value that it must have for this one to be drawn.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, Any]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that must be allowed for all to be."""
        return self.values if self.is_choice else self.values[:2]

    @property
    def is_choice(self) -> bool:
        """Whether it is a list of values."""
        return _KINDS[self.kind] is None

    def domain(self) -> Any:
        """The same for Ray Tune."""
        if self.is_choice:
            return tune.choice(list(self.values))
        if self.kind == "integer":
            return tune.randint(self.values[0], self.values[1] + 1)
        if self.kind == "quantised":
            low, high, step = self.values
            count = math.floor((high - low) / step + 1e-9)
            return tune.choice([low + number * step for number in range(count + 1)])
        return {"uniform": tune.uniform, "loguniform": tune.loguniform}[self.kind](*self.values)

    def optuna(self) -> optuna.distributions.BaseDistribution:
        """The same for Optuna."""
        if self.is_choice:
            return optuna.distributions.CategoricalDistribution(self.values)
        if self.kind == "integer":
            return optuna.distributions.IntDistribution(*self.values)
        low, high, *step = self.values
        return optuna.distributions.FloatDistribution(
            low, high, log=self.kind == "loguniform", step=step[0] if step else None
        )


class SearchSpace:
    """Distributions over keys of a configuration.

    Args:
        config: what keys without a distribution have.
        tree: key -> distribution, as in the module's text.

    Raises:
        UsageError: a key that does not exist or may not be swept, a distribution that is none, or
            one with values that the key does not take.
    """

    def __init__(self, config: Config, tree: Mapping[str, Any]) -> None:
        self.distributions = tuple(_distribution(key, text) for key, text in tree.items())
        keys = [distribution.key for distribution in self.distributions]
        for distribution in self.distributions:
            for value in distribution.extremes:
                apply(config, {distribution.key: value}, f"tune.space {distribution.key}")
            if missing := [key for key in distribution.when if key not in keys]:
                raise UsageError(
                    f"tune.space {distribution.key}: `when` names {missing[0]}, which the space "
                    "does not have"
                )

    @classmethod
    def of(cls, config: Config) -> SearchSpace:
        """The space that `tune.space` names or holds.

        Raises:
            UsageError: there is none, or as above.
        """
        space = config.tune.space
        if space is None:
            raise UsageError(
                f"nothing to sweep: set tune.space to names out of {', '.join(SPACES)}, joined by "
                "+, or to keys with distributions; or give tune.arms"
            )
        if isinstance(space, str):
            names = [name.strip() for name in space.split("+")]
            if unknown := [name for name in names if name not in SPACES]:
                raise UsageError(
                    f"tune.space: there is no space {unknown[0]!r}; there are {', '.join(SPACES)}"
                )
            space = {key: text for name in names for key, text in SPACES[name].items()}
        return cls(config, space)

    def active(self, point: Point) -> Point:
        """Without the keys whose conditions the others do not meet."""
        return {
            d.key: point[d.key]
            for d in self.distributions
            if d.key in point and all(point.get(key) == value for key, value in d.when.items())
        }

    def random(self, count: int, seed: int) -> list[Point]:
        """So many independent points, the same for the same seed."""
        state = np.random.RandomState(seed)
        return [
            self.active(
                {d.key: _plain(d.domain().sample(random_state=state)) for d in self.distributions}
            )
            for _ in range(count)
        ]

    def grid(self) -> list[Point]:
        """All combinations, those that differ only in inactive keys once.

        Raises:
            UsageError: a distribution has no list of values.
        """
        for distribution in self.distributions:
            if not distribution.is_choice:
                raise UsageError(
                    f"tune.search=grid needs `grid: [values]` for {distribution.key}, "
                    f"not {distribution.kind}"
                )
        points: list[Point] = []
        for values in itertools.product(*(d.values for d in self.distributions)):
            keys = (d.key for d in self.distributions)
            point = self.active(dict(zip(keys, values, strict=True)))
            if point not in points:
                points.append(point)
        return points

    def suggest(self, trial: Any) -> None:
        """Asks an Optuna trial for the active keys, in an order that conditions can be met in."""
        known: Point = {}
        for distribution in self._by_condition():
            if any(known.get(key) != value for key, value in distribution.when.items()):
                continue
            key, kind, values = distribution.key, distribution.kind, distribution.values
            if distribution.is_choice:
                known[key] = trial.suggest_categorical(key, list(values))
            elif kind == "integer":
                known[key] = trial.suggest_int(key, *values)
            else:
                step = values[2] if kind == "quantised" else None
                log = kind == "loguniform"
                known[key] = trial.suggest_float(key, values[0], values[1], step=step, log=log)

    def _by_condition(self) -> Iterator[Distribution]:
        return iter(sorted(self.distributions, key=lambda d: len(d.when)))


def apply(config: Config, point: Point, where: str) -> Config:
    """The configuration with a point's values.

    Args:
        config: the values of all other keys.
        point: key -> value.
        where: of the point, for the error.

    Raises:
        UsageError: a key that does not exist or may not be swept, or a value it does not take.
    """
    tree = config.model_dump()
    for key, value in point.items():
        section, _, name = key.partition(".")
        if section in ("ingest", "tune"):
            raise UsageError(f"{where}: {key} is no setting of a pretraining")
        tree.setdefault(section, {})[name] = value
    try:
        return build_config(tree)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _distribution(key: str, text: Any) -> Distribution:
    where = f"tune.space {key}"
    if not isinstance(text, Mapping):
        raise UsageError(f"{where}: {text!r} is no distribution; such as {{uniform: [0, 1]}}")
    when = text.get("when", {})
    kinds = [kind for kind in text if kind != "when"]
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise UsageError(f"{where}: one distribution out of {', '.join(_KINDS)}, not {kinds}")
    if not isinstance(when, Mapping):
        raise UsageError(f"{where}: `when` maps keys to values, not {when!r}")
    kind, values = kinds[0], text[kinds[0]]
    if isinstance(values, list | tuple):
        values = [yaml_number(value) for value in values]
    count = _KINDS[kind]
    if not isinstance(values, list | tuple) or not values or (count and len(values) != count):
        raise UsageError(f"{where}: {kind} takes a list of {count or 'values'}, not {values!r}")
    if count:
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise UsageError(f"{where}: {kind} takes numbers, not {values!r}")
        if values[0] >= values[1] or (kind == "loguniform" and values[0] <= 0):
            raise UsageError(f"{where}: {values!r} is no interval for {kind}")
    return Distribution(key, kind, tuple(_hashable(v) for v in values), dict(when))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def swept_keys(points: list[Point]) -> list[str]:
    """Keys of any point, in the order of the configuration."""
    present = {key for point in points for key in point}
    return [key for key, *_ in settings() if key in present]

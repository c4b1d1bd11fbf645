"""What a sweep may change: named spaces, and distributions over any key of the configuration.

A space maps keys to distributions, in YAML:

    loss.alpha: {uniform: [0, 1]}
    optim.base_lr: {loguniform: [1.0e-5, 1.0e-3]}
    data.local_crops: {integer: [2, 8]}             # both ends are possible
    optim.weight_decay: {quantised: [0, 0.2, 0.01]} # 0, 0.01, 0.02, ...
    head.num_prototypes: {choice: [1024, 4096]}     # `grid` is the same, for a grid search
    model.num_queries: {choice: [1, 5], when: {data.fusion: true}}

A key with `when` is drawn only where the other keys are drawn and have these values; elsewhere it
keeps the value of the configuration. Keys may stand in any order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
from ray import tune

from terrafm.config import Config, build_config, settings
from terrafm.config.yaml_text import parse_yaml, shortened
from terrafm.errors import UsageError

Point = dict[str, Any]
"""Values of the keys that differ from the configuration."""

SPACES: dict[str, dict[str, Any]] = {
    # How much the frequent classes are taken out of the teacher's logits, and how fast.
    "centering": {
        "loss.alpha": {"uniform": [0.0, 1.0]},
        "loss.center_momentum": {"choice": [0.8, 0.9, 0.95, 0.99]},
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

_STEPPED = ("integer", "quantised")
_MOST_STEPS = 100_000
_MOST_POINTS = 10_000
# Values of a distribution that are tried one by one.
_MOST_CHECKED = 1000


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
    def is_choice(self) -> bool:
        """Whether it is a list of values."""
        return _KINDS[self.kind] is None

    def steps(self) -> Sequence[Any] | None:
        """All values, lowest first; None where there is a continuum of them."""
        if self.is_choice:
            return self.values
        low, high = self.values[:2]
        if self.kind == "integer":
            return range(low, high + 1)
        if self.kind == "quantised":
            step = self.values[2]
            count = math.floor((high - low) / step + 1e-9)
            return [min(high, low + number * step) for number in range(count + 1)]
        return None

    def examples(self) -> Iterator[Any]:
        """Values that must be allowed for all to be."""
        values = self.steps()
        if values is None:
            low, high = self.values
            # Between the ends one that is no round number.
            yield from (low, low + (high - low) / math.pi, high)
        elif self.is_choice or len(values) <= _MOST_CHECKED:
            yield from values
        else:
            # Keys are bounded by intervals and by multiples.
            yield from (values[0], values[1], values[-2], values[-1])

    def ends(self) -> list[Any]:
        """The lowest and the highest value; of a choice all."""
        return list(self.values) if self.is_choice else list(self.values[:2])

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        values = self.steps()
        return values is not None and any(_same(value, one) for one in values)

    def domain(self) -> Any:
        """The same for Ray Tune."""
        if self.kind == "integer":
            return tune.randint(self.values[0], self.values[1] + 1)
        values = self.steps()
        if values is not None:
            return tune.choice(list(values))
        return {"uniform": tune.uniform, "loguniform": tune.loguniform}[self.kind](*self.values)

    def mutation(self) -> Any:
        """The same for population based training, which goes to a neighbour in a list."""
        values = self.steps()
        return self.domain() if values is None else list(values)

    def suggest(self, trial: Any) -> Any:
        """The same of an Optuna trial."""
        if self.is_choice:
            return trial.suggest_categorical(self.key, list(self.values))
        low, high, *step = self.values
        if all(isinstance(value, int) for value in self.values) and self.kind in _STEPPED:
            return trial.suggest_int(self.key, low, high, step=step[0] if step else 1)
        return trial.suggest_float(
            self.key, low, high, step=step[0] if step else None, log=self.kind == "loguniform"
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
        if not tree:
            raise UsageError("tune.space is empty: give it keys with distributions")
        self._config = config
        self.distributions = tuple(_distribution(config, key, text) for key, text in tree.items())
        self._by_key = {d.key: d for d in self.distributions}
        self._conditions_first = self._in_order()

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
        met: Point = {}
        for distribution in self._conditions_first:
            if distribution.key in point and _meets(distribution, met):
                met[distribution.key] = point[distribution.key]
        return {key: value for key, value in point.items() if key in met}

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
        if math.prod(len(d.values) for d in self.distributions) > _MOST_POINTS:
            raise UsageError(f"tune.search=grid has more than {_MOST_POINTS:,} combinations")
        points: list[Point] = []
        for values in itertools.product(*(d.values for d in self.distributions)):
            keys = (d.key for d in self.distributions)
            point = self.active(dict(zip(keys, values, strict=True)))
            if point not in points:
                points.append(point)
        return points

    def suggest(self, trial: Any) -> None:
        """Asks an Optuna trial for the active keys."""
        met: Point = {}
        for distribution in self._conditions_first:
            if _meets(distribution, met):
                met[distribution.key] = distribution.suggest(trial)

    def within(self, point: Point) -> Point:
        """Continuous values moved to the next end where they lie outside.

        Population based training multiplies them by 0.8 or 1.2, whatever their ends.
        """
        moved = dict(point)
        for distribution in self.distributions:
            if distribution.steps() is None:
                low, high = distribution.values
                moved[distribution.key] = min(max(moved[distribution.key], low), high)
        return moved

    def _in_order(self) -> tuple[Distribution, ...]:
        """Each after the keys that it depends on.

        Raises:
            UsageError: a condition on a key that the space does not have, on a value that is never
                drawn, or in a circle.
        """
        for distribution in self.distributions:
            for key, value in distribution.when.items():
                where = f"tune.space {distribution.key}: `when` names {key}"
                if key not in self._by_key:
                    raise UsageError(f"{where}, which the space does not have")
                if not self._by_key[key].holds(value):
                    raise UsageError(f"{where}, which is never {shortened(value)}")
        graph = {d.key: d.when.keys() for d in self.distributions}
        try:
            keys = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise UsageError(
                f"tune.space: conditions in a circle: {', '.join(error.args[1])}"
            ) from None
        return tuple(self._by_key[key] for key in keys)


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
        section, _, name = str(key).partition(".")
        if section in ("ingest", "validation", "tune"):
            raise UsageError(f"{where}: {key} is no setting of a trial's training")
        tree.setdefault(section, {})[name] = value
    try:
        return build_config(tree)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _distribution(config: Config, key: str, text: Any) -> Distribution:
    where = f"tune.space {key}"
    if not isinstance(text, Mapping):
        raise UsageError(
            f"{where}: {shortened(text)} is no distribution; such as {{uniform: [0, 1]}}"
        )
    kinds = [kind for kind in text if kind != "when"]
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise UsageError(f"{where}: one distribution out of {', '.join(_KINDS)}, not {kinds}")
    kind, values = kinds[0], text[kinds[0]]
    count = _KINDS[kind]
    if not isinstance(values, list | tuple) or not values or (count and len(values) != count):
        raise UsageError(
            f"{where}: {kind} takes a list of {count or 'values'}, not {shortened(values)}"
        )
    if count:
        values = [_number(value, where, kind) for value in values]
        _check_interval(where, kind, values)
    else:
        values = [_value_of(config, key, value, where) for value in values]
    distribution = Distribution(key, kind, tuple(values), _conditions(config, text, where))
    for value in distribution.examples():
        _value_of(config, key, value, f"{where} {kind} {shortened(list(values))}")
    return distribution


def _conditions(config: Config, text: Mapping[str, Any], where: str) -> dict[str, Any]:
    when = text.get("when", {})
    if not isinstance(when, Mapping):
        raise UsageError(f"{where}: `when` maps keys to values, not {shortened(when)}")
    return {key: _value_of(config, key, value, f"{where} when") for key, value in when.items()}


def _check_interval(where: str, kind: str, values: list[Any]) -> None:
    low, high, *step = values
    if not low < high or (kind == "loguniform" and low <= 0):
        raise UsageError(f"{where}: {values} is no interval for {kind}")
    if kind == "integer" and not all(isinstance(value, int) for value in values):
        raise UsageError(f"{where}: integer takes whole numbers, not {values}")
    if step and not 0 < step[0] <= high - low:
        raise UsageError(
            f"{where}: the step of quantised is above 0 and no larger than {high - low:g}, not "
            f"{step[0]:g}"
        )
    if step and (high - low) / step[0] > _MOST_STEPS:
        raise UsageError(f"{where}: {values} has more than {_MOST_STEPS:,} steps: use uniform")


def _number(value: Any, where: str, kind: str) -> int | float:
    number = _read(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise UsageError(f"{where}: {kind} takes finite numbers, not {shortened(value)}")
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _value_of(config: Config, key: str, value: Any, where: str) -> Any:
    """What a key of the configuration makes of a value.

    Raises:
        UsageError: as `apply`.
    """
    section, _, name = str(key).partition(".")
    try:
        whole = apply(config, {key: value}, where)
    except UsageError:
        if _read(value) is value:
            raise
        whole = apply(config, {key: _read(value)}, where)
    return getattr(getattr(whole, section), name)


def _read(value: Any) -> Any:
    """A value as YAML 1.2 has it, where a reader of 1.1 has left 1e-3 as text."""
    with suppress(ValueError):
        return parse_yaml(value) if isinstance(value, str) else value
    return value


def _meets(distribution: Distribution, met: Point) -> bool:
    return all(key in met and _same(met[key], value) for key, value in distribution.when.items())


def _same(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of steps; 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def swept_keys(points: list[Point]) -> list[str]:
    """Keys of any point, in the order of the configuration."""
    present = {key for point in points for key in point}
    return [key for key, *_ in settings() if key in present]

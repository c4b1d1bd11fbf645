"""What a sweep has found: the best point, what matters, differences that are not chance.

The best point is the best at the last step that any trial reached. What answers to a setting is
asked at the last step that half of the trials reached, for a scheduler leaves few to the end. A
trial that collapsed or failed has no value at either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from scipy import stats

from terrafm.config import Config
from terrafm.config.yaml_text import dump_yaml
from terrafm.storage.addresses import recorded
from tuning.objective import HEADLINES, MEASURES
from tuning.search_space import apply
from tuning.trial import read_scores
from tuning.trials import COLLAPSED, FAILED, OPEN, read_table, swept_columns

_RESAMPLED = 30
# Fewer say nothing about what matters.
_FEWEST_FOR_IMPORTANCE = 6
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Findings:
    """A sweep, read for a person.

    Attributes:
        table: a row for each trial, as `read_table`.
        config: of the sweep.
        keys: swept keys, in the order of the configuration.
        objective: the first of `tune.objectives`.
        points: a row for each point that has a value at the last step: `point`, `arm`, `n` trials,
            each measure's mean and, as `<measure>_std`, standard deviation over seeds, and the
            swept keys.
        common_step: the last step that half of the trials reached.
        common_points: as `points`, at `common_step`.
        scores: trial -> its lines of scores.jsonl.
        importance: swept key -> (mean, standard deviation) of its share of the variance explained.
        differences: a row for each arm but the first: `arm`, `measure`, `n` pairs, mean
            `difference` to the first arm at the same seed, `low` and `high` of its 95 % interval.
    """

    table: pd.DataFrame
    config: Config
    keys: tuple[str, ...]
    objective: str
    points: pd.DataFrame
    common_step: int
    common_points: pd.DataFrame
    scores: dict[int, list[dict[str, Any]]]
    importance: dict[str, tuple[float, float]]
    differences: pd.DataFrame

    @property
    def best(self) -> dict[str, Any] | None:
        """The point whose mean over seeds is the highest; None where none has a value."""
        if self.points.empty:
            return None
        row = self.points.sort_values(self.objective, ascending=False, kind="stable").iloc[0]
        measures = {name: float(row[name]) for name in MEASURES if pd.notna(row.get(name))}
        return {
            "point": int(row["point"]),
            "arm": row["arm"],
            "set": {key: row[key] for key in self.keys if not is_missing(row[key])},
            "trials": int(row["n"]),
            "measures": measures,
        }


def find(output: str, config: Config) -> Findings:
    """Reads a sweep's folder."""
    table = read_table(output)
    keys = tuple(swept_columns(table))
    scores = {int(row["trial"]): read_scores(row["folder"]) for _, row in table.iterrows()}
    valued = table[~table["state"].isin([COLLAPSED, FAILED, OPEN])]
    last = valued[valued["steps"] == valued["steps"].max()]
    common_step = _common_step(valued["steps"].tolist())
    common = _at_step(valued, scores, common_step)
    objective = config.tune.objectives[0]
    return Findings(
        table=table,
        config=config,
        keys=keys,
        objective=objective,
        points=_points(last, keys),
        common_step=common_step,
        common_points=_points(common, keys),
        scores=scores,
        importance=importance(_filled(common, keys, config), keys, objective),
        differences=differences(last, list(config.tune.arms)),
    )


def _common_step(steps: list[int]) -> int:
    """The last step that at least half of the trials reached; 0 where there are none."""
    return sorted(steps)[len(steps) // 2] if steps else 0


def _at_step(
    valued: pd.DataFrame, scores: dict[int, list[dict[str, Any]]], step: int
) -> pd.DataFrame:
    """The rows of trials that were scored at a step, with the measures of then."""
    rows = []
    for _, row in valued.iterrows():
        lines = [line for line in scores[int(row["trial"])] if line["step"] == step]
        if lines:
            rows.append(row.to_dict() | {name: lines[-1].get(name) for name in MEASURES})
    return pd.DataFrame(rows, columns=valued.columns)


def best_yaml(findings: Findings, best: dict[str, Any]) -> str:
    """The best point as a configuration that `terrafm pretrain --config` takes."""
    config = findings.config
    tree = apply(config, best["set"], "best point").model_dump(mode="json", exclude={"tune"})
    # Of a trial that shared a machine.
    tree["data"]["cpus_per_worker"] = None
    told = ", ".join(f"{name} {value:.4g}" for name, value in best["measures"].items())
    which = f"Point {best['point']}{_named(best['arm'])} of a sweep"
    return f"# {which}, mean of {best['trials']}: {told}\n" + dump_yaml(recorded(tree))


def _named(arm: str | None) -> str:
    return f" ({arm})" if arm else ""


def _points(valued: pd.DataFrame, keys: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    measures = [name for name in MEASURES if name in valued]
    for point, group in valued.groupby("point"):
        numbers = group[measures].astype(float)
        rows.append(
            {
                "point": point,
                "arm": group["arm"].iloc[0],
                "n": len(group),
                **{name: numbers[name].mean() for name in measures},
                # Of one trial there is no spread.
                **{f"{name}_std": numbers[name].std(ddof=1) for name in measures},
                **{key: group[key].iloc[0] for key in keys},
            }
        )
    return pd.DataFrame(rows)


def _filled(valued: pd.DataFrame, keys: tuple[str, ...], config: Config) -> pd.DataFrame:
    """With the configuration's values where a point leaves a key as it is."""
    tree = config.model_dump()
    filled = valued.copy()
    for key in keys:
        section, _, name = key.partition(".")
        values = [tree[section][name] if is_missing(v) else v for v in valued[key]]
        filled[key] = pd.Series(values, index=valued.index, dtype=object)
    return filled


def importance(
    valued: pd.DataFrame, keys: tuple[str, ...], objective: str, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """How much of the objective's variance each key explains (fANOVA, Hutter et al. 2014).

    Args:
        valued: a row for each trial with a value, all keys given.
        keys: that were swept.
        objective: the measure.
        seed: of the forests and of resampling.

    Returns:
        Key -> mean and standard deviation over trials drawn anew with replacement; empty where
        there are too few trials, or nothing varies.
    """
    frame = valued.dropna(subset=[objective]) if objective in valued else valued.iloc[:0]
    varied = [key for key in keys if frame[key].map(json.dumps).nunique() > 1]
    if len(frame) < _FEWEST_FOR_IMPORTANCE or not varied:
        return {}
    distributions = {key: _distribution(frame[key].tolist()) for key in varied}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {key: [] for key in varied}
    for _ in range(_RESAMPLED):
        sample = frame.iloc[generator.integers(0, len(frame), len(frame))]
        if sample[objective].nunique() < 2:
            continue
        study = optuna.create_study(direction="maximize")
        for _, row in sample.iterrows():
            parameters = {
                key: _parameter(row[key], distribution)
                for key, distribution in distributions.items()
            }
            trial = optuna.trial.create_trial(
                params=parameters, distributions=distributions, value=float(row[objective])
            )
            study.add_trial(trial)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        for key in varied:
            drawn[key].append(float(found.get(key, 0.0)))
    values = {key: (float(np.mean(v)), float(np.std(v))) for key, v in drawn.items() if v}
    return dict(sorted(values.items(), key=lambda item: -item[1][0]))


def is_missing(value: Any) -> bool:
    """Whether a table has no value here: its columns of numbers say so by NaN."""
    return value is None or (isinstance(value, float) and value != value)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distribution(values: list[Any]) -> optuna.distributions.BaseDistribution:
    if all(is_number(value) for value in values):
        return optuna.distributions.FloatDistribution(float(min(values)), float(max(values)))
    return optuna.distributions.CategoricalDistribution(sorted({json.dumps(v) for v in values}))


def _parameter(value: Any, distribution: optuna.distributions.BaseDistribution) -> Any:
    numeric = isinstance(distribution, optuna.distributions.FloatDistribution)
    return float(value) if numeric else json.dumps(value)


def differences(valued: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Each arm against the first at the same seeds: mean and Student's 95 % interval.

    Args:
        valued: a row for each trial with a value.
        arms: names, the reference first.
    """
    rows = []
    reference = valued[valued["arm"] == arms[0]].set_index("seed") if arms else None
    for arm in arms[1:]:
        assert reference is not None
        ours = valued[valued["arm"] == arm].set_index("seed")
        for measure in (name for name in HEADLINES if name in valued):
            pairs = (ours[measure].astype(float) - reference[measure].astype(float)).dropna()
            if pairs.empty:
                continue
            mean, n = float(pairs.mean()), len(pairs)
            half = float("nan")
            if n > 1:
                error = float(pairs.std(ddof=1)) / np.sqrt(n)
                half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * error
            rows.append(
                {
                    "arm": arm,
                    "measure": measure,
                    "n": n,
                    "difference": mean,
                    "low": mean - half,
                    "high": mean + half,
                }
            )
    return pd.DataFrame(rows)

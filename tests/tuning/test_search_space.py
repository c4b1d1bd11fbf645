"""Spaces: what is drawn is allowed, what is wrong is said before anything starts."""

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm.config import Config, load_config
from terrafm.errors import UsageError
from tuning.search_space import SPACES, SearchSpace, apply

CONFIG = Config()


@st.composite
def distributions(draw):
    """A distribution of loss.teacher_temp, in YAML's words."""
    low = draw(st.floats(1e-3, 1.0))
    high = low * draw(st.floats(1.01, 100))
    kind = draw(st.sampled_from(["uniform", "loguniform", "quantised", "choice"]))
    if kind == "choice":
        return {kind: draw(st.lists(st.floats(1e-3, 10), min_size=1, max_size=5))}
    return {kind: [low, high, (high - low) / 7] if kind == "quantised" else [low, high]}


@pytest.mark.parametrize("name", SPACES)
def test_named_spaces_hold_keys_and_values_of_the_configuration(name):
    space = SearchSpace(CONFIG, SPACES[name])
    for point in space.random(40, seed=1):
        apply(CONFIG, point, "test")


def test_spaces_are_joined_by_plus():
    config = load_config(None, ["tune.space=centering+loss"])
    keys = {d.key for d in SearchSpace.of(config).distributions}
    assert keys == SPACES["centering"].keys() | SPACES["loss"].keys()


@given(distributions(), st.integers(0, 2**31 - 1))
def test_points_lie_in_their_distribution_and_come_again(text, seed):
    space = SearchSpace(CONFIG, {"loss.teacher_temp": text})
    points = space.random(5, seed)
    assert points == space.random(5, seed)
    (kind, values), *_ = text.items()
    for point in points:
        value = point["loss.teacher_temp"]
        if kind == "choice":
            assert value in values
            continue
        assert values[0] <= value <= values[1] * (1 + 1e-9)
        if kind == "quantised":
            steps = (value - values[0]) / values[2]
            assert steps == pytest.approx(round(steps), abs=1e-6)


def test_numbers_that_yaml_takes_for_text_are_numbers():
    config = load_config(None, ["tune.space={optim.base_lr: {loguniform: [1e-3, 1e-2]}}"])
    (distribution,) = SearchSpace.of(config).distributions
    assert distribution.values == (1e-3, 1e-2)


def test_integers_reach_both_ends():
    space = SearchSpace(CONFIG, {"data.local_crops": {"integer": [2, 4]}})
    assert {p["data.local_crops"] for p in space.random(60, 0)} == {2, 3, 4}


def test_a_grid_has_every_combination_once():
    space = SearchSpace(
        CONFIG,
        {
            "data.fusion": {"grid": [True, False]},
            "model.num_queries": {"grid": [1, 5], "when": {"data.fusion": True}},
            "loss.alpha": {"grid": [0.0, 1.0]},
        },
    )
    points = space.grid()
    assert len(points) == 2 * 2 + 2
    assert all(("model.num_queries" in p) == p["data.fusion"] for p in points)


@given(st.integers(0, 1000))
def test_optuna_draws_the_same_keys_under_the_same_conditions(seed):
    space = SearchSpace(CONFIG, SPACES["modality"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    space.suggest(trial)
    assert set(trial.params) == set(space.active(trial.params))
    assert ("model.num_queries" in trial.params) == trial.params["data.fusion"]
    apply(CONFIG, trial.params, "test")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"loss.alfa": {"uniform": [0, 1]}}, ["loss.alfa", "did you mean loss.alpha"]),
        ({"loss.alpha": {"uniform": [0, 1.5]}}, ["loss.alpha", "1.5"]),
        ({"loss.alpha": {"uniform": [1, 0]}}, ["no interval"]),
        ({"loss.alpha": {"normal": [0, 1]}}, ["one distribution out of"]),
        ({"loss.alpha": {"uniform": [0]}}, ["a list of 2"]),
        ({"loss.alpha": 0.5}, ["no distribution"]),
        ({"optim.base_lr": {"loguniform": [0, 1]}}, ["no interval"]),
        ({"tune.trials": {"choice": [1]}}, ["no setting of a trial"]),
        ({"loss.alpha": {"grid": [0], "when": {"data.fusion": True}}}, ["data.fusion"]),
        ({"data.global_size": {"choice": [224, 100]}}, ["multiple of 16"]),
    ],
)
def test_what_is_wrong_is_named(tree, words):
    with pytest.raises(UsageError) as error:
        SearchSpace(CONFIG, tree)
    for word in words:
        assert word in str(error.value)


def test_a_grid_needs_lists():
    with pytest.raises(UsageError, match="grid: \\[values\\]"):
        SearchSpace(CONFIG, {"loss.alpha": {"uniform": [0, 1]}}).grid()


def test_a_file_may_stand_on_a_recipe(tmp_path):
    (tmp_path / "sweep.yaml").write_text("base: demo\ntrain: {steps: 7}\n")
    config = load_config(str(tmp_path / "sweep.yaml"))
    assert config.train.steps == 7
    assert config.model.name == "terrafm_tiny"
    (tmp_path / "loop.yaml").write_text(f"base: {tmp_path / 'loop.yaml'}\n")
    with pytest.raises(UsageError, match="stands on itself"):
        load_config(str(tmp_path / "loop.yaml"))
    assert math.isclose(config.optim.base_lr, load_config("demo").optim.base_lr)

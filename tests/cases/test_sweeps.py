"""Sweeps that did not try what they said."""

import shutil
from pathlib import Path

import optuna
import pytest
from ray.tune.schedulers.pbt import _explore

from terrafm.config import load_config
from terrafm.errors import UsageError
from tuning.search_space import SearchSpace
from tuning.sweep import Sweep
from tuning.trial import TrialTask

SMALL = ["data.global_size=32", "data.local_size=16", "train.cpus_per_worker=1"]


@pytest.fixture
def case(cases, tmp_path):
    """(number) -> a copy of a case's folder."""

    def copy(number):
        return Path(shutil.copytree(cases(f"training/{number}"), tmp_path / number))

    return copy


@pytest.fixture
def sweep(small_dataset, tmp_path):
    """(configuration, overrides) -> a sweep that is checked and not begun."""

    def check(config, *overrides):
        loaded = load_config(str(config), [*SMALL, *overrides])
        return Sweep(loaded, small_dataset, str(tmp_path / "out"))

    return check


def seeds_of(sweep):
    """Of the runs that a sweep with known points would make."""
    config = sweep.config.model_dump(mode="json")
    task = TrialTask(config, sweep.data, sweep.labelled, tuple(sweep.modalities), sweep.output)
    drawn = sweep._param_space()["drawn"]["grid_search"]
    return [task.config_of({"drawn": choice}).train.seed for choice in drawn]


def test_a_swept_seed_is_the_seed_of_the_run(case, sweep):
    file = case("07") / "sweep.yaml"
    assert set(seeds_of(sweep(file))) <= {1, 2}
    assert seeds_of(sweep(file, "tune.search=grid")) == seeds_of(
        sweep(file, "tune.search=grid", "tune.space={train.seed: {grid: [1e0, 2]}}")
    )
    assert seeds_of(sweep(file, "tune.search=grid", "train.seed=5")) == [1, 2]
    arms = ["tune.space=none", "tune.arms={a: {train.seed: 7}, b: {loss.alpha: 1}}"]
    assert seeds_of(sweep(file, *arms)) == [7, 0]
    assert seeds_of(sweep(file, "tune.space=none", "tune.arms={b: {}}", "tune.seeds=3")) == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    "swept",
    ["tune.space={train.seed: {choice: [1, 2]}}", "tune.arms={a: {train.seed: 7}}"],
)
def test_a_swept_seed_and_several_seeds_do_not_go_together(sweep, swept):
    with pytest.raises(UsageError, match=r"train\.seed is swept, and tune\.seeds=2"):
        sweep("demo", swept, "tune.seeds=2")


def test_asha_compares_trials_of_one_length(case, sweep):
    file = case("08") / "sweep.yaml"
    with pytest.raises(UsageError, match=r"train\.steps would make .*6 to 60 steps"):
        sweep(file)
    assert len(sweep(file, "tune.scheduler=none").points) == 2
    assert sweep(file, "tune.space={loss.alpha: {grid: [0, 1]}}")._scheduler()._max_t == 6


# All that decides how many steps a run has; 11 tiles.
STRETCHING = {
    "train.steps": "[6, 60]",
    "train.epochs": "[2, 20]",
    "data.epoch_length": "[16, 160]",
    "train.global_batch": "[4, 8]",
    "data.water_keep": "[0.0, 1.0]",
}


@pytest.mark.parametrize("key", STRETCHING)
@pytest.mark.parametrize(
    "method",
    [
        ["tune.scheduler=asha", "tune.search=grid"],
        ["tune.scheduler=asha"],
        ["tune.scheduler=median"],
        ["tune.scheduler=asha", "tune.search=optuna"],
        ["tune.scheduler=pbt"],
    ],
    ids=["asha grid", "asha random", "median", "asha optuna", "pbt"],
)
def test_no_scheduler_takes_runs_of_different_length(sweep, key, method):
    run = ["train.steps=none", "train.epochs=20", "train.checkpoint_every=1",
           "train.global_batch=4", "train.log_every=1", "tune.trials=20"]  # fmt: skip
    with pytest.raises(UsageError, match=f"{key} would make|{key} cannot change in flight"):
        sweep("demo", *run, *method, f"tune.space={{{key}: {{choice: {STRETCHING[key]}}}}}")


def test_arms_of_one_length_are_that_long(sweep):
    arms = "tune.arms={a: {train.steps: 60}, b: {train.steps: 60, loss.alpha: 1}}"
    run = ["train.steps=6", "train.checkpoint_every=3", "tune.scheduler=asha"]
    assert sweep("demo", *run, arms)._scheduler()._max_t == 60
    with pytest.raises(UsageError, match=r"train\.steps would make"):
        sweep("demo", *run, "tune.arms={a: {}, b: {train.steps: 60}}")


def test_population_based_training_stays_within_the_space(sweep):
    tree = {
        "loss.alpha": "{uniform: [0.5, 1]}",
        "optim.base_lr": "{loguniform: [1e-3, 1e-2]}",
        "loss.high_frequency_classes": "{choice: [[10, 20], [10, 30]]}",
        "loss.center_momentum": "{choice: [0.8, 0.9, 0.99]}",
        "model.drop_path": "{quantised: [0, 0.3, 0.1]}",
        "data.keep_probability": "{integer: [0, 1]}",
    }
    space = ", ".join(f"{key}: {text}" for key, text in tree.items())
    run = ["tune.scheduler=pbt", "train.steps=6", "train.checkpoint_every=3"]
    checked = sweep("demo", *run, f"tune.space={{{space}}}")
    scheduler = checked._scheduler()
    (point,) = checked.space.random(1, seed=1)
    for _ in range(300):
        point, _ = _explore(
            point,
            scheduler._hyperparam_mutations,
            scheduler._resample_probability,
            scheduler._perturbation_factors,
            scheduler._custom_explore_fn,
        )
        assert 0.5 <= point["loss.alpha"] <= 1
        assert 1e-3 <= point["optim.base_lr"] <= 1e-2
        assert point["loss.high_frequency_classes"] in ((10, 20), (10, 30))
        assert point["loss.center_momentum"] in (0.8, 0.9, 0.99)
        assert point["model.drop_path"] in (0, 0.1, 0.2, pytest.approx(0.3))
        assert point["data.keep_probability"] in (0, 1)


def test_epochs_that_steps_override_are_not_swept(sweep):
    with pytest.raises(UsageError, match=r"train\.steps overrides it"):
        sweep("demo", "tune.space={train.epochs: {choice: [1, 2]}}")
    with pytest.raises(UsageError, match=r"train\.steps overrides it"):
        sweep("demo", "tune.arms={a: {train.epochs: 2}}")
    either = "{train.steps: {grid: [none, 5]}, train.epochs: {grid: [1, 2], when: %s}}"
    space = f"tune.space={either % '{train.steps: none}'}"
    assert len(sweep("demo", "tune.search=grid", space).points) == 3


def test_a_scheduler_that_would_never_act_is_refused(sweep):
    run = ["train.steps=6", "train.checkpoint_every=6", "tune.space={loss.alpha: {choice: [0]}}"]
    with pytest.raises(UsageError, match=r"set train\.checkpoint_every below 6"):
        sweep("demo", *run, "tune.scheduler=median")


CHAIN = {
    "loss.alpha": {"choice": [0.1, 0.2], "when": {"model.num_queries": 1}},
    "model.num_queries": {"choice": [1, 5], "when": {"data.fusion": True}},
    "data.fusion": {"choice": [True, False]},
}


def orders(tree):
    keys = list(tree)
    return [{key: tree[key] for key in (keys[i:] + keys[:i])[:: 1 - 2 * (i % 2)]} for i in range(3)]


@pytest.mark.parametrize(
    ("tree", "count"),
    [
        (
            {"optim.base_lr": {"grid": ["1e-3", "1e-2"]},
             "loss.alpha": {"grid": [0.1, 0.2], "when": {"optim.base_lr": "1e-3"}}},
            3,
        ),
        (
            {"optim.base_lr": {"grid": [1e-3, 1e-2]},
             "loss.alpha": {"grid": [0.1, 0.2], "when": {"optim.base_lr": "1e-3"}}},
            3,
        ),
        (
            {"data.modalities": {"grid": [["s1"], ["s1", "s2_l2a"]]},
             "loss.alpha": {"grid": [0.1, 0.2], "when": {"data.modalities": ["s1", "s2_l2a"]}}},
            3,
        ),
        (CHAIN, 4),
        (
            {"train.keep_every": {"grid": ["none", 5]},
             "loss.alpha": {"grid": [0.1, 0.2], "when": {"train.keep_every": None}}},
            3,
        ),
        (
            {"train.zero_stage": {"grid": [0, 1]},
             "loss.alpha": {"grid": [0.1, 0.2], "when": {"train.zero_stage": 1.0}}},
            3,
        ),
        (
            {"data.fusion": {"grid": [True, False]}, "model.num_queries": {"grid": [1, 5]},
             "loss.alpha": {"grid": [0.1, 0.2],
                            "when": {"data.fusion": True, "model.num_queries": 5}}},
            5,
        ),
    ],
)  # fmt: skip
def test_conditions_hold_where_they_should_in_any_order(tree, count):
    for ordered in orders(tree):
        space = SearchSpace(load_config("demo"), ordered)
        points = space.grid()
        assert len(points) == count
        wanted = {frozenset(point.items()) for point in points}
        drawn = {frozenset(point.items()) for point in space.random(300, seed=1)}
        asked = {frozenset(point.items()) for point in ask_optuna(space, 300)}
        assert drawn == asked == wanted


def ask_optuna(space, count):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        space.suggest(trial)
        yield dict(trial.params)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"data.fusion": True}, "in a circle: .*model.num_queries"),
        ({"model.num_queries": 1}, "in a circle: .*loss.alpha"),
        ({"model.num_queries": 3}, "model.num_queries, which is never 3"),
        ({"model.num_queries": "many"}, "model.num_queries takes an integer"),
        ({"optim.base_lr": 0.002}, "optim.base_lr, which is never 0.002"),
        ({"loss.student_temp": 0.1}, "loss.student_temp, which the space does not have"),
        ({"loss.alfa": 0.1}, "unknown configuration key loss.alfa"),
        ({1: 2}, "unknown configuration key 1"),
        (5, "`when` maps keys to values, not 5"),
    ],
)
def test_conditions_that_can_never_hold(condition, words):
    tree = {
        "model.num_queries": {"choice": [1, 5], "when": {"loss.alpha": 1}},
        "data.fusion": {"choice": [True], "when": {"model.num_queries": 1}},
        "optim.base_lr": {"loguniform": [1e-3, 1e-2]},
        "loss.alpha": {"choice": [0, 1], "when": condition},
    }
    if condition == {"model.num_queries": 1} or not isinstance(condition, dict):
        del tree["data.fusion"]
    with pytest.raises(UsageError, match=words):
        SearchSpace(load_config("demo"), tree)


NO_DISTRIBUTIONS = {
    "quantised 0": ("model.drop_path", "{quantised: [0, 0.3, 0]}", "step of quantised is above 0"),
    "quantised -": ("model.drop_path", "{quantised: [0, 0.3, -0.1]}", "step of quantised"),
    "quantised +": ("model.drop_path", "{quantised: [0, 0.3, 0.5]}", "step of quantised"),
    "quantised 1e9": ("model.drop_path", "{quantised: [0, 0.3, 1e-9]}", "more than 100,000 steps"),
    "inf": ("optim.base_lr", "{loguniform: [0.1, .inf]}", "loguniform takes finite numbers"),
    "nan": ("optim.base_lr", "{uniform: [.nan, 1]}", "uniform takes finite numbers, not nan"),
    "nan step": ("model.drop_path", "{quantised: [0, 0.3, .nan]}", "finite numbers"),
    "fractions": ("loss.alpha", "{integer: [0.2, 0.9]}", "integer takes whole numbers"),
    "patches": ("data.global_size", "{integer: [64, 96]}", "a multiple of 16, not 65"),
    "floats": ("head.num_prototypes", "{loguniform: [32, 128]}", "takes an integer .*, not 62"),
    "steps of 5": ("data.global_size", "{quantised: [64, 96, 5]}", "multiple of 16, not 69"),
    "half steps": ("data.local_crops", "{quantised: [2, 8, 1.5]}", "takes an integer .*, not 3.5"),
    "equal": ("loss.alpha", "{uniform: [0.5, 0.5]}", "no interval"),
    "order": ("loss.alpha", "{integer: [1, 0]}", "no interval"),
    "log 0": ("optim.weight_decay", "{loguniform: [0, 1]}", "no interval for loguniform"),
    "log -": ("optim.weight_decay", "{loguniform: [-1, 1]}", "no interval for loguniform"),
    "below": ("model.drop_path", "{uniform: [0, 1]}", "a number from 0 to below 1, not 1"),
    "choice": ("loss.alpha", "{choice: []}", "choice takes a list of values"),
    "no list": ("loss.alpha", "{choice: 5}", "choice takes a list of values"),
    "truth": ("loss.alpha", "{uniform: [false, true]}", "takes finite numbers, not false"),
    "text": ("loss.alpha", "{uniform: [low, high]}", "takes finite numbers, not 'low'"),
    "words": ("data.fusion", "{choice: [yes, no]}", "data.fusion takes true or false, not 'yes'"),
    "numbers": ("train.zero_stage", "{choice: [1, true]}", "train.zero_stage takes an integer"),
    "section": ("loss", "{choice: [1]}", "unknown configuration key loss"),
    "no key": ("'1'", "{choice: [1]}", "unknown configuration key 1"),
    "other": ("validation.every_steps", "{choice: [1]}", "no setting of a trial"),
    "none": ("loss.alpha", "", "null is no distribution"),
    "several": ("loss.alpha", "{uniform: [0, 1], choice: [1]}", "one distribution out of"),
    "empty": (None, "{}", "tune.space is empty"),
    "absent": (None, "", "nothing to sweep"),
}


@pytest.mark.parametrize("search", ["random", "optuna", "grid"])
@pytest.mark.parametrize("name", NO_DISTRIBUTIONS)
def test_distributions_that_are_none(cases, sweep, tmp_path, name, search):
    key, text, words = NO_DISTRIBUTIONS[name]
    base = (cases("training/10") / "base.yaml").read_text()
    space = f"\n    {key}: {text}\n" if key else f" {text}\n"
    (tmp_path / "x.yaml").write_text(f"{base}  search: {search}\n  trials: 2\n  space:{space}")
    with pytest.raises(UsageError, match=words) as error:
        sweep(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_what_is_a_distribution_is_drawn_within_its_ends():
    tree = {
        "data.global_size": {"quantised": [64, 128, 16]},
        "data.local_crops": {"integer": ["2e0", 4.0]},
        "model.drop_path": {"quantised": [0, 0.3, 0.1]},
        "loss.alpha": {"quantised": [0.7, 1.0, 0.1]},
        "train.global_batch": {"integer": [8, 100_000]},
        "train.keep_every": {"choice": ["none", 5]},
    }
    space = SearchSpace(load_config("demo"), tree)
    for point in [
        *space.random(200, seed=1),
        *ask_optuna(space, 99),
    ]:
        assert point["data.global_size"] in (64, 80, 96, 112, 128)
        assert point["data.local_crops"] in (2, 3, 4)
        assert 0 <= point["model.drop_path"] <= 0.3
        assert 0.7 <= point["loss.alpha"] <= 1.0
        assert point["train.keep_every"] in (None, 5)


def test_a_grid_of_too_many_points_is_refused():
    values = [number / 200 for number in range(150)]
    tree = {key: {"grid": values} for key in ("loss.alpha", "model.drop_path", "data.water_keep")}
    with pytest.raises(UsageError, match="more than 10,000 combinations"):
        SearchSpace(load_config("demo"), tree).grid()

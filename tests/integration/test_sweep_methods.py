"""Searchers and schedulers on a real Ray."""

import pytest
import yaml
from commands import terrafm
from sweeps import ALPHA, command, table

from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_asha_ends_trials_early(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [ALPHA, "tune.trials=5", "tune.scheduler=asha"]
    terrafm(*command(small_dataset, output, *more), timeout=1500)
    rows = table(output)
    assert set(rows["state"]) <= {"finished", "stopped"}
    assert len(rows) == 5
    assert (rows["state"] == "finished").any()


def test_median_ends_trials_early_or_not_at_all(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [ALPHA, "tune.trials=3", "tune.scheduler=median"]
    terrafm(*command(small_dataset, output, *more), timeout=1500)
    rows = table(output)
    assert set(rows["state"]) <= {"finished", "stopped"}
    assert (rows["state"] == "finished").any()


def test_population_based_training_hands_states_from_trial_to_trial(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [
        "tune.space={loss.alpha: {uniform: [0, 1]}, optim.base_lr: {loguniform: [1e-4, 1e-2]}}",
        "tune.trials=2", "tune.scheduler=pbt", "train.seed=3", "train.steps=60",
        # No two are equal in it.
        "tune.objectives=[effective_rank]",
    ]  # fmt: skip
    terrafm(*command(small_dataset, output, *more), timeout=1500)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 2
    taken = sorted(output.glob("trials/*/run-1"))
    assert taken, "no trial took the other's state"
    for run in taken:
        before = yaml.safe_load((run.parent / "run-0" / "config.yaml").read_text())
        after = yaml.safe_load((run / "config.yaml").read_text())
        changed = [(before[s][k], after[s][k]) for s in before for k in before[s]]
        assert any(old != new for old, new in changed)
        start = next(e for e in read_events(str(run)) if e["event"] == "started")
        assert start["step"] > 0


def test_optuna_learns_from_means_over_seeds(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [ALPHA, "tune.search=optuna", "tune.trials=2", "tune.seeds=2"]
    terrafm(*command(small_dataset, output, *more), timeout=1500)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 4
    assert rows.groupby("point")["loss.alpha"].nunique().tolist() == [1, 1]
    assert rows.groupby("point")["seed"].apply(sorted).tolist() == [[0, 1], [0, 1]]


def test_optuna_weighs_several_objectives(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    objectives = "tune.objectives=[balanced_accuracy, effective_rank]"
    more = [ALPHA, "tune.search=optuna", "tune.trials=3", objectives]
    terrafm(*command(small_dataset, output, *more), timeout=1500)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 3
    assert rows["loss.alpha"].nunique() == 3
    assert rows[["balanced_accuracy", "effective_rank"]].notna().all(axis=None)

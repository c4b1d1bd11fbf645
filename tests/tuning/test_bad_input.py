"""What a sweep refuses: one line, exit code 2, before anything starts."""

import pytest

from terrafm.config import load_config

SMALL = ["data.global_size=32", "data.local_size=16", "head.num_prototypes=32", "train.steps=8"]
ALPHA = "tune.space={loss.alpha: {uniform: [0, 1]}}"


def command(data, output, *settings):
    overrides = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return ["sweep", "--config", "demo", "--data", data, "--output", output, *overrides]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["nothing to sweep", "centering"]),
        (["tune.space=centring"], ["no space 'centring'", "centering"]),
        (["tune.space={loss.alfa: {uniform: [0, 1]}}"], ["loss.alfa", "loss.alpha"]),
        (["tune.space={loss.alpha: {uniform: [0, 2]}}"], ["loss.alpha", "2"]),
        ([ALPHA, "tune.search=grid"], ["grid: [values]"]),
        ([ALPHA, "tune.arms={a: {loss.alpha: 1}}"], ["leave out tune.space"]),
        (["tune.arms={a: {loss.alpa: 1}}"], ["loss.alpa"]),
        ([ALPHA, "tune.scheduler=pbt", "tune.seeds=2"], ["pbt", "one seed"]),
        (
            ["tune.space={head.num_prototypes: {choice: [8, 16]}}", "tune.scheduler=pbt",
             "train.checkpoint_every=2"],
            ["head.num_prototypes", "in flight"],
        ),
        ([ALPHA, "tune.search=optuna", "tune.scheduler=asha", "tune.seeds=2"], ["optuna"]),
        ([ALPHA, "tune.objectives=[balanced_accuracy, tail_accuracy]"], ["optuna"]),
        ([ALPHA, "tune.objectives=[loss]"], ["no 'loss'", "balanced_accuracy"]),
        (
            [ALPHA, "tune.objectives=[effective_rank]", "train.log_every=6",
             "train.checkpoint_every=4"],
            ["effective_rank", "train.log_every"],
        ),
        ([ALPHA, "tune.scheduler=asha"], ["train.checkpoint_every", "below 8"]),
        ([ALPHA, "train.workers=[1, 2]"], ["train.workers is one number"]),
        ([ALPHA, "tune.labelled=/nowhere"], ["/nowhere"]),
        ([ALPHA, "tune.modalities=[s2_l1c]", "data.modalities=[s1]"], ["s2_l1c"]),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(refused, small_dataset, tmp_path, settings, words):
    line = refused(*command(small_dataset, tmp_path / "sweep", *settings))
    for word in words:
        assert word in line
    assert not (tmp_path / "sweep").exists()


def test_a_dataset_that_does_not_exist(refused, tmp_path):
    assert "nowhere" in refused(*command(tmp_path / "nowhere", tmp_path / "sweep", ALPHA))


def test_a_folder_that_holds_something_else(refused, small_dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds no sweep" in refused(*command(small_dataset, tmp_path, ALPHA))


def test_another_sweep_in_the_folder(refused, small_dataset, tmp_path):
    config = load_config("demo", [*SMALL, ALPHA, "data.cpus_per_worker=1.0", "tune.trials=3"])
    (tmp_path / "sweep.yaml").write_text(config.to_yaml())
    assert "--resume" in refused(*command(small_dataset, tmp_path, ALPHA, "tune.trials=3"))
    line = refused(*command(small_dataset, tmp_path, ALPHA, "tune.trials=4"), "--resume")
    assert "tune.trials=3, now 4" in line

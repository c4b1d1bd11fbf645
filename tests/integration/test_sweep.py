"""Sweeps on a real Ray: what comes out, and what survives a kill."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from clusters import cluster, environment, lose, wait_until
from commands import kill_session, start, terrafm

from terrafm.config import load_config
from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, EVERY = 12, 4
SETTINGS = [
    f"train.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "train.keep_checkpoints=9",
    "train.global_batch=6",
    "train.log_every=1",
    "head.num_prototypes=32",
    "data.local_crops=2",
    "data.rows_per_block=6",
    "tune.max_concurrent=2",
]
ALPHA = "tune.space={loss.alpha: {uniform: [0, 1]}}"


def command(data, output, *more):
    overrides = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["sweep", "--config", "demo", "--data", data, "--output", output, *overrides]


def table(output):
    return pd.read_parquet(output / "trials.parquet")


def scores(output, trial):
    path = output / "trials" / f"{trial:04d}" / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log_of(log):
    return log.read_text()


def trial_processes(process):
    """The processes of the trials that run now."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "ImplicitFunc" in " ".join(p.cmdline())]


def test_points_and_seeds_make_a_table_a_best_point_and_a_report(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    done = terrafm(
        *command(small_dataset, output, ALPHA, "tune.trials=2", "tune.seeds=2"), timeout=600
    )
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 4
    assert sorted(zip(rows["point"], rows["seed"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows.groupby("point")["loss.alpha"].nunique().tolist() == [1, 1]
    assert (rows["steps"] == STEPS).all()
    for row in rows.itertuples():
        saved = yaml.safe_load(Path(row.run, "config.yaml").read_text())
        assert saved["loss"]["alpha"] == json.loads(rows.loc[row.Index, "loss.alpha"])
        assert saved["train"]["seed"] == row.seed
    means = rows.groupby("point")["balanced_accuracy"].mean()
    best = load_config(str(output / "best.yaml"))
    expected = json.loads(rows[rows["point"] == means.idxmax()]["loss.alpha"].iloc[0])
    assert best.loss.alpha == expected
    assert (output / "report.html").stat().st_size > 10_000
    assert "best point" in done.stdout
    # Nothing is left to do, and the table stays as it is.
    again = terrafm(
        *command(small_dataset, output, ALPHA, "tune.trials=2", "tune.seeds=2"), "--resume"
    )
    assert again.stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]
    pd.testing.assert_frame_equal(table(output), rows)


def test_asha_ends_trials_early(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [ALPHA, "tune.trials=5", "tune.scheduler=asha", "tune.reduction_factor=2"]
    terrafm(*command(small_dataset, output, *more), timeout=800)
    rows = table(output)
    assert set(rows["state"]) <= {"finished", "stopped"}
    assert len(rows) == 5
    assert (rows["state"] == "finished").any()


def test_a_killed_command_goes_on(small_dataset, tmp_path):
    output, log = tmp_path / "sweep", tmp_path / "log"
    arguments = command(small_dataset, output, ALPHA, "tune.trials=4")
    first = start(*arguments, log=log)
    # Two are done, others under way.
    done = lambda: sum(f"trial   {n}  finished" in log_of(log) for n in range(4)) >= 2  # noqa: E731
    wait_until(done, "two trials", first, seconds=400, log=log)
    wait_until(lambda: any(scores(output, n) for n in (2, 3)), "a score", first, 200, log=log)
    before = {n: scores(output, n) for n in range(4)}
    kill_session(first)
    refused = terrafm(*arguments, check=2)
    assert "--resume" in refused.stderr
    terrafm(*arguments, "--resume", timeout=600)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 4
    for trial, lines in before.items():
        after = scores(output, trial)
        # What was scored is not scored again, and nothing is missing.
        assert after[: len(lines)] == lines
        assert [line["step"] for line in after] == [4, 8, 12]


def test_a_killed_trial_goes_on_from_its_checkpoint(small_dataset, tmp_path):
    output, log = tmp_path / "sweep", tmp_path / "log"
    process = start(
        *command(small_dataset, output, ALPHA, "tune.trials=2", "tune.max_concurrent=1"), log=log
    )
    wait_until(lambda: scores(output, 0), "a score", process, seconds=300, log=log)
    (victim,) = trial_processes(process)
    newest = list_checkpoints(str(output / "trials" / "0000" / "run-0" / "checkpoints"))[-1][0]
    os.kill(victim.pid, signal.SIGKILL)
    assert process.wait(timeout=500) == 0, log_of(log)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 2
    events = read_events(str(output / "trials/0000/run-0"))
    starts = [event["step"] for event in events if event["event"] == "started"]
    assert starts[0] == 0
    assert starts[1] >= newest > 0


def test_a_lost_node_costs_its_trials_nothing_but_time(small_dataset, tmp_path):
    output, log = tmp_path / "sweep", tmp_path / "log"
    with cluster(1, 2) as nodes:
        other = nodes.add_node(num_cpus=2)
        process = start(
            *command(small_dataset, output, ALPHA, "tune.trials=2"),
            log=log, environment=environment(nodes),
        )  # fmt: skip
        wait_until(lambda: scores(output, 0) and scores(output, 1), "scores", process, 400, log=log)
        lose(nodes, other)
        nodes.add_node(num_cpus=2)
        assert process.wait(timeout=600) == 0, log_of(log)
    assert table(output)["state"].tolist() == ["finished"] * 2


def test_population_based_training_comes_to_its_end(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [
        "tune.space={loss.alpha: {uniform: [0, 1]}, optim.base_lr: {loguniform: [1e-3, 1e-2]}}",
        "tune.trials=2", "tune.scheduler=pbt", "tune.seed=3",
    ]  # fmt: skip
    terrafm(*command(small_dataset, output, *more), timeout=800)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 2


def test_optuna_learns_from_means_over_seeds(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    more = [ALPHA, "tune.search=optuna", "tune.trials=2", "tune.seeds=2"]
    terrafm(*command(small_dataset, output, *more), timeout=800)
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 4
    assert rows.groupby("point")["loss.alpha"].nunique().tolist() == [1, 1]
    assert rows.groupby("point")["seed"].apply(sorted).tolist() == [[0, 1], [0, 1]]

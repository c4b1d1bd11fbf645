"""Trackers get the numbers of each line, and none of them can stop a run."""

import importlib.util
import json
import time

import pytest

from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.train.metrics.alerts import Alerts
from terrafm.train.metrics.log import MetricsLog, read_metrics
from terrafm.train.metrics.tracker_clients import open_trackers
from terrafm.train.metrics.trackers import Background, TrackedRun, Tracker, check_trackers

CONFIG = load_config("demo").model_dump(mode="json")
# Of all names the one with most characters that a tracker could refuse.
RETRIEVAL = "validation/retrieval/s2_l1c-to-later/recall10"


def line(step):
    return {"step": step, "loss": 1 / step, "alarm": ["falling_rank"], "bottleneck": "data"}


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Kept(Tracker):
    def __init__(self, run):
        self.run, self.lines, self.closed = run, [], False

    def write(self, step, values):
        self.lines.append((step, dict(values)))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def background(start, **options):
    return Background("some", TrackedRun("folder"), start, **options)


def test_a_package_that_is_missing_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"train\.trackers names wandb.*terrafm\[wandb\]"):
        check_trackers(["wandb"])


def test_a_folder_of_the_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "not_a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="not_a_tracker"):
        check_trackers(["not_a_tracker"])


def test_tensorboard_is_there():
    check_trackers(load_config("demo").train.trackers)


def test_without_trackers_there_is_only_the_file(tmp_path):
    log = MetricsLog(str(tmp_path), 0, trackers=())
    log.write(line(1))
    log.close()
    assert read_metrics(str(tmp_path)) == [line(1)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    log.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "lr": 0.1,
    }


def test_a_background_tracker_gets_every_line_and_is_closed():
    made = []
    tracker = background(lambda run: made.append(Kept(run)) or made[0])
    for step in (1, 2, 3):
        tracker.write(step, {"loss": 0.5})
    tracker.close()
    assert made[0].lines == [(step, {"loss": 0.5}) for step in (1, 2, 3)]
    assert made[0].closed
    assert tracker.failure is None


def refuses(run):
    raise ConnectionError("the server is down\nand more")


class Breaks(Kept):
    def write(self, step, values):
        raise ValueError("no such run")


@pytest.mark.parametrize(
    ("start", "reason"),
    [(refuses, "ConnectionError: the server is down"), (Breaks, "ValueError: no such run")],
)
def test_a_tracker_that_fails_is_left_alone(start, reason):
    tracker = background(start)
    tracker.write(1, {"loss": 0.5})
    wait_until(lambda: tracker.failure)
    assert tracker.failure == reason
    tracker.write(2, {"loss": 0.5})
    tracker.close()


def test_a_tracker_that_hangs_costs_a_run_neither_a_step_nor_its_end():
    def hangs(run):
        time.sleep(600)

    tracker = background(hangs, close_seconds=0.2)
    began = time.monotonic()
    for step in range(2000):
        tracker.write(step, {"loss": 0.5})
    tracker.close()
    assert time.monotonic() - began < 60
    assert "lines behind" in tracker.failure


def test_a_failure_stands_in_the_lines_and_is_told_once(tmp_path):
    log = MetricsLog(str(tmp_path), 0, trackers=())
    log._trackers = {"mlflow": background(refuses)}
    wait_until(lambda: log._trackers["mlflow"].failure)
    for step in (1, 2):
        log.write(line(step))
    log.close()
    lines = read_metrics(str(tmp_path))
    assert all(
        row["trackers_off"] == {"mlflow": "ConnectionError: the server is down"} for row in lines
    )
    notices = Alerts()
    told = [
        sentence
        for row in lines
        for sentence in notices.new({"step": row["step"], "trackers_off": row["trackers_off"]})
    ]
    assert len(told) == 1
    assert "mlflow takes no more metrics (ConnectionError" in told[0]


def track(folder, name, start_step, steps):
    trackers = open_trackers([name], TrackedRun(str(folder), start_step, CONFIG))
    for step in steps:
        trackers[name].write(step, {"loss": 1 / step, RETRIEVAL: 1 / step})
    trackers[name].close()
    assert trackers[name].failure is None


def test_mlflow_for_real_over_a_restart(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    track(folder, "mlflow", 0, (1, 2, 3))
    track(folder, "mlflow", 2, (3, 4))
    client = tracking.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("terrafm")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["train.steps"] == "350"
    for name in ("loss", RETRIEVAL):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value) for m in history) == [
            (step, pytest.approx(1 / step)) for step in (1, 2, 3, 3, 4)
        ]


def test_mlflow_whose_server_is_away(tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log = MetricsLog(str(tmp_path), 0, ["mlflow"], CONFIG)
    wait_until(lambda: log._trackers["mlflow"].failure, seconds=60)
    log.write(line(1))
    log.close()
    (row,) = read_metrics(str(tmp_path))
    assert "mlflow" in row["trackers_off"]


def test_wandb_for_real_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(tmp_path, "wandb", 0, (1, 2, 3))
    first = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    track(tmp_path, "wandb", 2, (3, 4))
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == first
    written = list((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 0 for path in written)

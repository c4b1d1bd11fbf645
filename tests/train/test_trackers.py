"""Trackers get the numbers of each line, and none of them can stop a run."""

import importlib.util
import json
import re
import threading
import time

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.models.weights import read_contract
from terrafm.storage import download, join, list_names
from terrafm.train.checkpoints.exported import export_last
from terrafm.train.checkpoints.store import load_checkpoint
from terrafm.train.metrics.alerts import Alerts
from terrafm.train.metrics.log import MetricsLog, read_metrics
from terrafm.train.metrics.tracker_clients import open_trackers
from terrafm.train.metrics.trackers import (
    Background,
    TrackedPicture,
    TrackedRun,
    Tracker,
    check_trackers,
)

CONFIG = load_config("demo").model_dump(mode="json")
# Of all names the one with most characters that a tracker could refuse.
RETRIEVAL = "validation/retrieval/s2_l1c-to-later/recall10"


def line(step):
    return {"step": step, "loss": 1 / step, "alarm": ["falling_rank"], "bottleneck": "data"}


def picture(shade, title="Tree cover / mangroves"):
    content = cv2.imencode(".png", np.full((4, 6, 3), (10, 20, shade), np.uint8))[1].tobytes()
    return TrackedPicture("tiles", title, content, "a shade", "of it")


@pytest.fixture
def weights(checkpoint):
    """Writes the weights of a run after some steps; gives their URI."""

    def at(folder, step):
        state = load_checkpoint(checkpoint)
        state.step = step
        export_last(str(folder), state)
        return join(str(folder), "exported", "last.safetensors")

    return at


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

    def write_pictures(self, step, pictures):
        self.lines.append((step, [one.name for one in pictures]))

    def write_weights(self, step, weights):
        self.lines.append((step, read_contract(weights).step))

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


def test_pictures_and_the_newest_weights_come_between_the_lines(tmp_path, weights):
    made, go = [], threading.Event()

    def start(run):
        go.wait()
        return made.append(Kept(run)) or made[0]

    (tmp_path / "run").mkdir()
    tracker = background(start, weights=True)
    for step in (1, 2):
        tracker.write(step, {"loss": 0.5})
        tracker.write_pictures(step, [picture(30)])
        tracker.write_weights(step, weights(tmp_path / "run", step))
    go.set()
    tracker.close()
    shown = ["tiles/tree_cover_mangroves"]
    # Those of step 1 are no longer there.
    assert made[0].lines == [
        (1, {"loss": 0.5}), (1, shown), (2, {"loss": 0.5}), (2, shown), (2, 2)
    ]  # fmt: skip


def test_weights_are_for_those_who_ask_for_them(tmp_path, weights):
    made = []
    (tmp_path / "run").mkdir()
    tracker = background(lambda run: made.append(Kept(run)) or made[0])
    tracker.write_weights(1, weights(tmp_path / "run", 1))
    tracker.close()
    assert made[0].lines == []


class NoRoom(Kept):
    def write_pictures(self, step, pictures):
        raise OSError("no room for https://me:secret@host/pictures")

    def write_weights(self, step, weights):
        raise OSError("no room for weights")


def test_a_tracker_without_room_for_files_keeps_the_numbers(tmp_path, weights, caplog):
    made = []
    (tmp_path / "run").mkdir()
    tracker = background(lambda run: made.append(NoRoom(run)) or made[0], weights=True)
    tracker.write_pictures(1, [picture(30)])
    tracker.write_weights(1, weights(tmp_path / "run", 1))
    tracker.write_weights(2, str(tmp_path / "run" / "exported" / "gone.safetensors"))
    tracker.write(2, {"loss": 0.5})
    tracker.close()
    assert tracker.failure is None
    assert made[0].lines == [(2, {"loss": 0.5})]
    assert "has not got the pictures after step 1: OSError: no room" in caplog.text
    assert "has not got the weights after step 2" in caplog.text
    assert "secret" not in caplog.text


def test_weights_on_their_way_are_waited_for_but_not_for_ever(tmp_path, weights):
    pauses = iter((1.0, 30.0, 30.0))

    class Slow(Kept):
        def write_weights(self, step, weights):
            time.sleep(next(pauses))

    (tmp_path / "run").mkdir()
    uri = weights(tmp_path / "run", 1)
    for failure in (None, "it did not end within 5.2 s"):
        tracker = background(Slow, weights=True, close_seconds=0.2, weights_seconds=5)
        tracker.write_weights(1, uri)
        tracker.close()
        assert tracker.failure == failure
    # The workers of a run would pass for hung ones.
    config = {"train": {"hang_timeout": 1}}
    run = TrackedRun("folder", config=config)
    tracker = Background("some", run, Slow, weights=True, close_seconds=0.2)
    tracker.write_weights(1, uri)
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 5


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


@pytest.mark.parametrize("place", ["disk", "store"])
def test_tensorboard_shows_pictures_and_the_newest_of_a_step_done_twice(place, request, tmp_path):
    uri = str(tmp_path / "run")
    if place == "store":
        uri = join(request.getfixturevalue("s3_bucket"), "run")
    for start, steps in ((0, (10, 20)), (10, (20, 30))):
        run = TrackedRun(uri, start, part="validation")
        (board,) = open_trackers(["tensorboard"], run).values()
        for step in steps:
            board.write(step, {"validation/knn": 0.5})
            board.write_pictures(step, [picture(start + step)])
            board.flush()
        board.close()
    folder = tmp_path / "seen"
    folder.mkdir()
    for name in list_names(join(uri, "tensorboard", "pictures")):
        download(join(uri, "tensorboard", "pictures", name), folder / name)
    events = EventAccumulator(str(folder)).Reload()
    images = events.Images("tiles/tree_cover_mangroves")
    assert [image.step for image in images] == [10, 20, 30]
    shades = [
        cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[0, 0]
        for image in images
    ]
    assert [tuple(map(int, shade)) for shade in shades] == [
        (10, 20, 10), (10, 20, 30), (10, 20, 40)
    ]  # fmt: skip
    if place == "disk":
        numbers = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "validation")).Reload()
        assert [event.step for event in numbers.Scalars("validation/knn")] == [10, 20, 30]


def test_tensorboard_without_a_disk_costs_no_run(tmp_path, caplog):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "pictures").write_text("a file is in the way")
    (board,) = open_trackers(["tensorboard"], TrackedRun(str(tmp_path))).values()
    board.write_pictures(1, [picture(30)])
    board.close()
    assert "TensorBoard misses pictures" in caplog.text


def track(folder, name, start_step, steps, weights):
    trackers = open_trackers([f"{name}+weights"], TrackedRun(str(folder), start_step, CONFIG))
    for step in steps:
        trackers[name].write(step, {"loss": 1 / step, RETRIEVAL: 1 / step})
        trackers[name].write_pictures(step, [picture(step)])
    trackers[name].write_weights(steps[-1], weights(folder, steps[-1]))
    trackers[name].close()
    assert trackers[name].failure is None


def test_mlflow_for_real_over_a_restart(tmp_path, monkeypatch, weights, caplog):
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    track(folder, "mlflow", 0, (1, 2, 3), weights)
    track(folder, "mlflow", 2, (3, 4), weights)
    assert not caplog.records
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
    images = [info.path for info in client.list_artifacts(run.info.run_id, "images")]
    for step in (1, 2, 3, 4):
        name = re.compile(rf"images/tiles.tree_cover_mangroves.step.{step}.timestamp.*\.png")
        assert any(map(name.fullmatch, images)), images
    (file,) = client.list_artifacts(run.info.run_id, "weights")
    taken = client.download_artifacts(run.info.run_id, file.path, str(tmp_path))
    assert read_contract(taken).step == 4
    assert run.data.tags["weights.last.step"] == "4"
    # Artifacts lie in the run's folder, not where the command was given.
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mlruns")] == []


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


def test_wandb_for_real_offline(tmp_path, monkeypatch, weights, caplog):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    track(tmp_path, "wandb", 0, (1, 2, 3), weights)
    first = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    track(tmp_path, "wandb", 2, (3, 4), weights)
    assert not caplog.records
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == first
    written = list((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 0 for path in written)

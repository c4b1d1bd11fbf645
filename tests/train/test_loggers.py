import uuid

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from terrafm.storage import list_names, resolve, write_bytes
from terrafm.train.metrics.log import MetricsLog, read_metrics


def line(step, loss):
    return {"step": step, "loss": loss, "tiles_per_second": 100.0}


def board(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_metrics_stand_in_the_file_and_on_the_board(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        log.write(line(step, 1 / step))
    assert read_metrics(str(tmp_path)) == [line(step, 1 / step) for step in (1, 2, 3)]
    log.close()
    shown = board(tmp_path)
    assert set(shown) == {"loss", "tiles_per_second"}
    assert shown["loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]


def test_a_resumed_run_tells_its_surviving_history_once(tmp_path):
    first = MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3, 4):
        first.write(line(step, 10.0))
    first.close()
    again = MetricsLog(str(tmp_path), 2)
    for step in (3, 4, 5):
        again.write(line(step, 20.0))
    again.close()
    expected = [10.0, 10.0, 20.0, 20.0, 20.0]
    assert [row["loss"] for row in read_metrics(str(tmp_path))] == expected
    assert board(tmp_path)["loss"] == list(enumerate(expected, 1))


def test_object_storage_gets_whole_files_at_each_flush():
    folder = f"memory://{uuid.uuid4().hex}"
    log = MetricsLog(folder, 0)
    log.write(line(1, 5.0))
    log.flush()
    assert read_metrics(folder) == [line(1, 5.0)]
    log.write(line(2, 4.0))
    log.close()
    assert [row["step"] for row in read_metrics(folder)] == [1, 2]
    (name,) = list_names(f"{folder}/tensorboard")
    filesystem, path = resolve(f"{folder}/tensorboard/{name}")
    assert filesystem.size(path) > 0


def test_the_start_of_a_line_that_a_killed_writer_left_is_no_line(tmp_path):
    write_bytes(str(tmp_path / "metrics.jsonl"), b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 2.0}]
    MetricsLog(str(tmp_path), 1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'

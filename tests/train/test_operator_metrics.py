"""What is reported to Ray's metrics, and where nothing is."""

import time
from pathlib import Path

import pytest

from terrafm.train.advice import ALARMS
from terrafm.train.metrics import operators


class Recorder:
    """In place of a Gauge: all of them write into one table."""

    table: dict

    def __init__(self, name, description, tag_keys=(), **_):
        assert description.endswith(".")
        self.name, self.tag_keys, self.tags = name, tag_keys, {}

    def set_default_tags(self, tags):
        self.tags = dict(tags)
        return self

    def set(self, value, tags=None):
        given = self.tags | (tags or {})
        assert set(given) == set(self.tag_keys)
        self.table[(self.name, *given.values())] = value

    observe = set


@pytest.fixture
def reported(monkeypatch):
    """(name, run, further tags...) -> value."""
    monkeypatch.delenv("RAY_enable_metrics_collection", raising=False)
    table = {}
    kind = type("Kind", (Recorder,), {"table": table})
    monkeypatch.setattr(operators, "Gauge", kind)
    monkeypatch.setattr(operators, "Histogram", kind)
    return table


def test_a_line_is_reported_with_its_alarms(reported):
    metrics = operators.WorkerMetrics("s3://bucket/run", 100, 4)
    metrics.tell({"step": 3, "loss": 2.5, "data_wait": 0.25, "alarm": ["falling_rank"]})
    assert reported["terrafm_step", "s3://bucket/run"] == 3
    assert reported["terrafm_loss_nats", "s3://bucket/run"] == 2.5
    assert reported["terrafm_data_wait_ratio", "s3://bucket/run"] == 0.25
    assert reported["terrafm_total_steps", "s3://bucket/run"] == 100
    assert reported["terrafm_workers", "s3://bucket/run"] == 4
    holds = {name: reported["terrafm_alarm", "s3://bucket/run", name] for name in ALARMS}
    assert holds == {name: float(name == "falling_rank") for name in ALARMS}
    # A loss that is not finite stands as null.
    metrics.tell({"step": 4, "loss": None})
    assert reported["terrafm_loss_nats", "s3://bucket/run"] == 2.5
    assert not any(reported["terrafm_alarm", "s3://bucket/run", name] for name in ALARMS)
    metrics.checkpoint_written(1.5)
    assert reported["terrafm_checkpoint_seconds", "s3://bucket/run"] == 1.5


def test_restarts_count_those_of_earlier_commands(reported):
    events = [{"event": name} for name in ("started", "lost", "resumed", "stopped", "lost")]
    metrics = operators.DriverMetrics("run", events)
    assert reported["terrafm_restarts", "run", "failure"] == 2
    metrics.tell("stopped")
    metrics.tell("validated")
    assert reported["terrafm_restarts", "run", "resize"] == 2
    assert reported["terrafm_restarts", "run", "failure"] == 2


def test_a_runs_tag_holds_no_secret(reported):
    operators.WorkerMetrics("https://user:secret@host/run", 1, 1).tell({"step": 1})
    assert reported
    assert "secret" not in str(reported)


def test_a_gauge_is_reported_again_until_it_is_closed(reported, monkeypatch):
    monkeypatch.setattr(operators, "_REPEAT_SECONDS", 0.01)
    metrics = operators.DriverMetrics("run", [])
    for _ in range(2):
        reported.clear()
        deadline = time.monotonic() + 30
        while len(reported) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reported == {
            ("terrafm_restarts", "run", "failure"): 0,
            ("terrafm_restarts", "run", "resize"): 0,
        }
    metrics.close()
    reported.clear()
    time.sleep(0.1)
    assert reported == {}


def test_nothing_is_reported_where_ray_exports_nothing(reported, monkeypatch):
    monkeypatch.setenv("RAY_enable_metrics_collection", "0")
    metrics = operators.WorkerMetrics("run", 100, 4)
    metrics.tell({"step": 3, "loss": 2.5})
    metrics.checkpoint_written(1.0)
    operators.DriverMetrics("run", [{"event": "lost"}]).tell("lost")
    assert reported == {}


def test_the_page_tells_of_every_metric():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    names = [name for name, _ in operators.GAUGES.values()]
    for name in [*names, *operators._OTHERS, "terrafm_checkpoint_seconds"]:
        assert f"`{name}`" in page, name

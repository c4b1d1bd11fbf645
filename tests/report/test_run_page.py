"""A run's page tells what happened, in words that are true."""

import json
import re
import time
from html.parser import HTMLParser

import pytest

from terrafm.report.page import MOST_BYTES, Page, render
from terrafm.report.run_history import History
from terrafm.report.run_page import nearest_recipe, run_sections
from terrafm.report.run_record import read_run
from terrafm.report.verdict import verdict_of
from terrafm.storage.lease_record import Holder

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{ 7*7 }}"


def page_of(*folders):
    runs = [read_run(str(folder.path), folder.path.name) for folder in folders]
    return render(Page("Runs", "", run_sections(runs)))


def history_of(folder):
    return History(read_run(str(folder.path), folder.path.name))


def hold(folder):
    """The lease of a command that trains here: this process."""
    (folder.path / ".lease").write_bytes(Holder.here("terrafm pretrain").content(1))


class Figures(HTMLParser):
    """Titles of a page's charts, and every element's name."""

    def __init__(self, page):
        super().__init__()
        self.names, self.specs, self._inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_data(self, data):
        if self._inside:
            self.specs.append(json.loads(data))
            self._inside = False


def test_a_healthy_run_says_how_far_it_is_and_when_it_ends(run_folder, monkeypatch):
    run = run_folder().started().lines(620)
    hold(run)
    monkeypatch.setattr(time, "time", lambda: run.now + 3)
    found = verdict_of(history_of(run))
    assert found.level == "good"
    assert found.headline == (
        "healthy, 62 % done, ends in about 6 min; waits for data 4 % of its training time"
    )
    assert found.done == pytest.approx(0.62)


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        (lambda run: run.lines(1, loss=float("nan")), "bad", "last step's loss is not finite"),
        (lambda run: None, "bad", "stopped before its end, 10 % done"),
        (lambda run: run.lines(900).event("finished", step=1000), "good", "finished, 1,000 steps"),
        (
            lambda run: (run.path / "failure.json").write_text('{"message": "no", "code": 1}'),
            "bad",
            "failed",
        ),
    ],
)
def test_other_states(run_folder, change, level, said):
    run = run_folder().started().lines(100)
    change(run)
    found = verdict_of(history_of(run))
    assert (found.level, found.headline[: len(said)]) == (level, said) or said in found.headline


def test_a_run_that_is_silent_or_recovers_is_not_called_healthy(run_folder, monkeypatch):
    run = run_folder().started().lines(100)
    hold(run)
    monkeypatch.setattr(time, "time", lambda: run.now + 3600)
    assert verdict_of(history_of(run)).headline.startswith("silent")
    run.event("lost", 3600, reason="died", step=100, seconds=1.0)
    run.event("started", 1.0, workers=1, step=100)
    monkeypatch.setattr(time, "time", lambda: run.now + 3)
    assert verdict_of(history_of(run)).headline.startswith("recovering, not training yet")


def test_a_collapse_is_named_with_what_to_change(collapsed):
    found = verdict_of(history_of(collapsed))
    assert found.level == "bad"
    assert "alarm" in found.headline
    assert any("few_prototypes since step 203" in line for line in found.details)
    assert any("Raise loss.teacher_temp" in line for line in found.details)


def test_faults_and_changes_stand_there_with_their_cost(troubled):
    history = history_of(troubled)
    told = [(h.step, h.text, h.cost) for h in history.happenings]
    texts = [text for _, text, _ in told]
    assert "Fault: the process of rank 1 died; shrank from 2 to 1 worker" in texts
    assert "Saved and stopped: there is room for 4 workers; grew from 1 to 4 workers" in texts
    assert sum(text.startswith("Killed") for text in texts) == 2
    cost = {text.partition(":")[0]: cost for _, text, cost in told}
    assert "20 steps (20 s of work) done again" in cost["Fault"]
    assert "went on from step 520" in cost["Killed"]
    assert cost["Saved and stopped"] == "21 s until it trained again"
    assert (611, "A loss or gradient was not finite: the step was left out", "one update") in told
    times = [h.time for h in history.happenings if h.time]
    assert times == sorted(times)


def test_the_account_adds_up_and_the_cost_is_what_was_held(troubled):
    history = history_of(troubled)
    account, cost = history.account, history.cost
    assert sum(account.values()) == pytest.approx(cost["seconds"], rel=1e-6)
    assert account["repeating lost work"] == 20.0
    # Killed twice: ten minutes and one passed until somebody started it again, and what was done
    # since the last line that survived is not known.
    assert account["not running"] == pytest.approx(660, abs=120)
    held = sum((g.ended - g.started) * g.workers for g in history.groups) / 3600
    assert cost["gpu_hours"] == pytest.approx(held)
    assert history.cost_in_words.endswith("GPU hours")


def test_every_chart_has_a_name_a_summary_and_a_table(troubled):
    page = page_of(troubled)
    for title in ("Loss (nats)", "Entropy (nats)", "Gradient norm", "Learning rate",
                  "Effective rank of the features", "Teacher momentum", "Tiles per second",
                  "Prototypes in use (perplexity)", "kNN accuracy of the tail classes",
                  "Retrieval: recall@10", "Workers over time (UTC)"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page, title
        assert f"<summary>Values of {title}</summary>" in page, title
        assert f'aria-label="{title} over ' in page, title
    found = Figures(page)
    charts = [attrs for tag, attrs in found.names if attrs.get("class") == "chart"]
    assert len(charts) == len(found.specs) > 10
    for spec in found.specs:
        assert spec["x"] == sorted(spec["x"])
        for curve in spec["curves"]:
            assert len(curve["values"]) == len(spec["x"])
    assert all(attrs["alt"] for tag, attrs in found.names if tag == "img")
    assert sum(tag == "h1" for tag, _ in found.names) == 1


def test_the_page_asks_for_nothing_from_outside(troubled):
    page = page_of(troubled)
    for tag, attrs in Figures(page).names:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert "default-src 'none'" in page


def test_names_in_the_data_are_text_and_nothing_else(run_folder):
    run = run_folder().started().lines(60)
    run.event("warning", warning=HOSTILE, rank=0)
    run.event("lost", 1.0, reason=HOSTILE, step=60, seconds=0.1)
    run.event("started", 1.0, workers=1, step=60, commit=HOSTILE, versions={HOSTILE: HOSTILE},
              cluster={"accelerators": [HOSTILE], "cpus": HOSTILE})  # fmt: skip
    (run.path / "failure.json").write_text(json.dumps({"message": HOSTILE, "code": 1}))
    run.scores(20, 60, classes=("tree", HOSTILE))
    other = run_folder("other").started().lines(60)
    runs = [read_run(str(run.path), HOSTILE), read_run(str(other.path), "other")]
    page = render(Page(HOSTILE, HOSTILE, run_sections(runs)))
    found = Figures(page)
    # The page's own two scripts, and the charts' numbers.
    scripts = [attrs for tag, attrs in found.names if tag == "script"]
    assert [attrs for attrs in scripts if attrs.get("type") != "application/json"] == [{}, {}]
    assert not [tag for tag, _ in found.names if tag == "img"]
    assert not [attrs for _, attrs in found.names if "onerror" in attrs]
    assert "alert(1)" in page
    assert "49" not in re.findall(r"<h1>.*?</h1>", page)[0]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 3, "alarm": 7, "bottleneck": [1], "loss": "x", "time": {}}',
        '{"step": 3, "alarm": [[1], null, "no_such"], "time": 1e300, "tiles_per_second": -1}',
        '{"step": 9223372036854775807, "loss": 1e308, "lr": -1e308}',
        '{"step": -1}',
        "[1]",
        '{"step": 3, "loss',
    ],
)
def test_strange_lines_cost_no_page(run_folder, line):
    run = run_folder().started().lines(5).scores(5)
    for name in ("metrics.jsonl", "events.jsonl", "validation.jsonl", "nonfinite.jsonl"):
        with (run.path / name).open("a") as file:
            file.write(line + "\n")
    with (run.path / "events.jsonl").open("a") as file:
        file.write(
            '{"time": 5, "event": "lost", "seconds": 1e308}\n{"time": -1e308, "event": "hung"}\n'
        )
        file.write('{"time": 1e308, "event": "started", "workers": 99999999}\n')
    assert "<h2" in page_of(run)


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "events.jsonl", "config.yaml", "dataset.json"]
)
def test_a_page_without_one_of_the_files(run_folder, missing):
    run = run_folder().started().lines(20)
    (run.path / missing).unlink()
    assert "Verdict" in page_of(run)


def test_a_run_from_before_lines_told_their_time(run_folder):
    run = run_folder().started().lines(200)
    file = run.path / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["time"]
    del lines[-1]["loss"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    hold(run)
    found = verdict_of(history_of(run))
    assert found.headline.startswith("healthy, 20 % done, ends in about 13 min")
    assert "<h3>Loss (nats)</h3>" in page_of(run)


def test_a_run_of_another_version_has_curves_and_no_settings(run_folder):
    run = run_folder().started().lines(20)
    (run.path / "config.yaml").write_text("train: {no_such_key: 1}\n")
    page = page_of(run)
    assert "Loss (nats)" in page
    assert "of another version of terrafm" in page


def test_settings_are_told_as_differences_from_the_nearest_recipe(run_folder):
    run = run_folder("run", "optim.base_lr=0.003", "loss.alpha=0.5").started().lines(5)
    name, _ = nearest_recipe(run.config)
    assert name == "demo"
    page = page_of(run)
    rows = re.findall(
        r'<tr[^>]*><th scope="row">([\w.]+)</th><td>([^<]*)</td><td>([^<]*)</td>', page
    )
    assert ("optim.base_lr", "0.004", "0.003") in rows
    assert ("loss.alpha", "0.8", "0.5") in rows
    assert not [row for row in rows if row[0] == "optim.min_lr"]


def test_runs_side_by_side_share_their_charts(run_folder):
    one, two = run_folder("one"), run_folder("two", "optim.base_lr=0.001")
    one.started().lines(50, every=2)
    two.started().lines(30, every=3)
    page = page_of(one, two)
    loss = next(s for s in Figures(page).specs if s["curves"][0]["label"] == "one")
    assert [curve["label"] for curve in loss["curves"]] == ["one", "two"]
    assert set(loss["x"]) == {*range(2, 101, 2), *range(3, 91, 3)}
    assert page.count('<div class="verdict') == 2
    assert ">Runs side by side<" in page


def test_a_page_does_not_grow_with_the_run(run_folder):
    small = len(page_of(run_folder("a").started().lines(2_000)))
    large = len(page_of(run_folder("b").started().lines(20_000)))
    assert large < 1.1 * small + 20_000
    assert large < MOST_BYTES / 5


@pytest.mark.slow
def test_a_hundred_thousand_lines_take_less_than_twenty_seconds(run_folder):
    run = run_folder().started().lines(100_000, every=50)
    began = time.monotonic()
    assert len(page_of(run)) < 1_000_000
    assert time.monotonic() - began < 20

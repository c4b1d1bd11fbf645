"""Progress: plain lines where the output is no terminal, a bar or a spinner in one."""

import io

import pytest

from terrafm import progress
from terrafm.progress import progress_bar, working
from terrafm.terminal import PlainConsole

LINE = {"loss": 2.5, "tiles_per_second": 41.26, "bottleneck": "data", "bottleneck_share": 0.314}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as a test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain():
    console = PlainConsole(file=io.StringIO())
    console.of_a_command = True
    return console


def test_lines_tell_rate_bottleneck_and_time_left(clock):
    console = plain()
    with progress_bar(console, "steps", "pretraining [b] here") as advance:
        assert console.file.getvalue() == "pretraining [b] here\n"
        advance(0, 1000)
        for done in (10, 20, 120):
            clock[0] += 5 if done < 120 else 50
            advance(done, 1000, LINE)
        advance(120, 1000, LINE)
        clock[0] += 1
        advance(1000, 1000, LINE | {"bottleneck": "compute"})
    assert console.file.getvalue().splitlines()[1:] == [
        "0/1000 steps",
        # Ten seconds after the line before, and not earlier.
        "20/1000 steps  loss 2.500  41.3 tiles/s  data 31% of the time  about 8 min left",
        "120/1000 steps  loss 2.500  41.3 tiles/s  data 31% of the time  about 7 min left",
        "1000/1000 steps  loss 2.500  41.3 tiles/s",
    ]


@pytest.mark.parametrize(("results_only", "of_a_command"), [(True, True), (False, False)])
def test_nothing_is_said_where_results_are_wanted_only_or_a_script_calls(
    results_only, of_a_command
):
    console = plain()
    console.results_only, console.of_a_command = results_only, of_a_command
    with progress_bar(console, "steps", "pretraining") as advance:
        advance(1, 2, LINE)
    with working(console, "reading") as tell:
        tell("features")
    assert console.file.getvalue() == ""


def test_what_is_done_next_is_a_line_of_its_own():
    console = plain()
    with working(console, "reading /w[/b]") as tell:
        tell("features of x")
    assert console.file.getvalue().splitlines() == ["reading /w[/b]", "features of x"]


def test_a_terminal_has_a_bar_that_goes():
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    with progress_bar(console, "steps", "pretraining") as advance:
        advance(3, 4, LINE)
    shown = console.file.getvalue()
    assert shown.startswith("pretraining\n")
    assert "3/4" in shown
    assert "41.3 tiles/s" in shown

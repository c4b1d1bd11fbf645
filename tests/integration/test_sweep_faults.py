"""Sweeps that lose their command, a trial or a node."""

import os
import signal

import psutil
import pytest
from clusters import cluster, environment, lose, wait_until
from commands import kill_session, start, terrafm
from sweeps import ALPHA, command, scores, table

from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def trial_processes(process):
    """The processes of the trials that run now, under the name that Tune gives its wrapper."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "ResourceTrainable" in " ".join(p.cmdline())]


def test_a_killed_command_goes_on(small_dataset, tmp_path):
    output, log = tmp_path / "sweep", tmp_path / "log"
    arguments = command(small_dataset, output, ALPHA, "tune.trials=4")
    # Killed before Tune has written anything.
    first = start(*arguments, log=log)
    wait_until((output / "sweep.yaml").exists, "its folder", first, seconds=100, log=log)
    kill_session(first)
    first = start(*arguments, "--resume", log=log)
    # Two are done, others under way.
    done = lambda: sum(f"trial   {n}  finished" in log.read_text() for n in range(4)) >= 2  # noqa: E731
    wait_until(done, "two trials", first, seconds=400, log=log)
    wait_until(lambda: any(scores(output, n) for n in (2, 3)), "a score", first, 200, log=log)
    before = {n: scores(output, n) for n in range(4)}
    kill_session(first)
    refused = terrafm(*arguments, check=2)
    assert "--resume" in refused.stderr
    terrafm(*arguments, "--resume", timeout=1500)
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
    assert process.wait(timeout=1200) == 0, log.read_text()
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
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert table(output)["state"].tolist() == ["finished"] * 2

"""An autoscaler brings machines for a run and takes them away: Ray's own, its nodes processes."""

import os
import signal

import pytest
from clusters import autoscaled_cluster, drain_node, training_workers, wait_until
from commands import start
from test_elastic import assert_planned_samples, command, step_of

from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# So many that a busy machine does not end before the spot notice comes.
STEPS = 200


def test_from_no_machine_to_two_and_back_with_a_kill_and_a_spot_notice(
    small_dataset, tmp_path, short_folder
):
    output, log = tmp_path / "run", tmp_path / "log"
    with autoscaled_cluster(short_folder, cpus=2, most=3) as made:
        assert made.workers() == []
        arguments = command(
            small_dataset, output, "train.workers=[1,2]", "train.standby=false",
            f"train.steps={STEPS}",
        )  # fmt: skip
        process = start(*arguments, log=log, environment=made.environment)

        def events(name):
            return [event for event in read_events(str(output)) if event["event"] == name]

        def training(workers):
            last = read_events(str(output))[-1:]
            return [(e["event"], e.get("workers")) for e in last] == [("training", workers)]

        def wait(condition, what):
            wait_until(condition, what, process, seconds=400, log=log)

        wait(lambda: training(2), "training on two machines")
        # Not the third, which nobody needs.
        assert len(made.workers()) == 2

        killed = step_of(output)
        os.kill(training_workers()[0].pid, signal.SIGKILL)
        wait(lambda: len(events("lost")) == 1, "the loss of a worker")
        wait(lambda: training(2) and step_of(output) > killed, "training after the loss")

        stops = len(events("stopping"))
        noticed, (raylet, node_id) = step_of(output), made.workers()[0]
        drain_node(made.address, node_id, 40, made.environment)
        wait(lambda: len(events("stopping")) > stops, "the spot notice")
        wait(lambda: not raylet.is_running(), "the end of the machine")
        wait(lambda: step_of(output) > noticed, "training after the notice")

        assert process.wait(timeout=1200) == 0, log.read_text()
        wait_until(lambda: made.workers() == [], "the end of idle machines", seconds=120)
    assert step_of(output) == STEPS
    assert_planned_samples(output, small_dataset, STEPS)

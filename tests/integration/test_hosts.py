"""Training over several hosts, each with an address of its own, whose links fail."""

import time

import pytest
from clusters import training_workers, wait_until
from hosts import several_hosts
from test_elastic import assert_planned_samples, command, step_of
from test_faults import events_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = ["train.workers=[1,2]", "train.hang_timeout=20", "train.standby=true"]
# Steps enough for a host that comes back.
MANY = 400
LONG = [f"train.steps={MANY}", "data.rows_per_block=30"]


@pytest.fixture
def scratch(tmp_path_factory):
    """Sockets below it: their paths may have 107 characters."""
    return tmp_path_factory.mktemp("r")


def workers_of(output):
    return [event["workers"] for event in events_of(output, "started")]


def test_the_link_between_two_hosts_is_cut(small_dataset, tmp_path, scratch):
    output, log = tmp_path / "run", tmp_path / "log"
    with several_hosts(2, scratch) as hosts:
        for host in (0, 1):
            hosts.start_ray(host, cpus=2)
        process = hosts.start(command(small_dataset, output, *SETTINGS), log)
        wait_until(lambda: step_of(output) >= 9, "step 9", process, log=log)
        assert len(training_workers()) == 2
        hosts.cut(1)
        moment = time.time()
        wait_until(lambda: len(events_of(output, "training")) == 2, "training", process, log=log)
        seconds = events_of(output, "training")[1]["time"] - moment
        assert process.wait(timeout=1200) == 0, log.read_text()
    # What was on the lost host may make the first group after it fail as well.
    assert workers_of(output)[-1] == 1
    print(f"from the cut to the next step {seconds:.0f} s")  # noqa: T201
    assert_planned_samples(output, small_dataset)


def test_a_link_of_three_hosts_is_cut_and_healed(small_dataset, tmp_path, scratch):
    """Head and two workers: a short cut costs nothing, a long one a worker until it is healed."""
    output, log = tmp_path / "run", tmp_path / "log"
    with several_hosts(3, scratch) as hosts:
        hosts.start_ray(0, cpus=1)
        for host in (1, 2):
            hosts.start_ray(host, cpus=2)
        process = hosts.start(command(small_dataset, output, *SETTINGS, *LONG), log)
        wait_until(lambda: step_of(output) >= 9, "step 9", process, log=log)
        assert [len(hosts.running(host, "RayTrainWorker")) for host in range(3)] == [0, 1, 1]

        hosts.cut(2)
        time.sleep(3)
        hosts.mend(2)
        before = step_of(output)
        wait_until(lambda: step_of(output) >= before + 3, "steps", process, log=log)
        assert workers_of(output) == [2]

        hosts.cut(2)
        wait_until(lambda: workers_of(output)[-1] == 1, "one worker", process, log=log)
        before = step_of(output)
        wait_until(lambda: step_of(output) >= before + 3, "steps", process, log=log)

        hosts.mend(2)
        # Ray ends a node that it has given up; whoever looks after the machine starts it again.
        wait_until(
            lambda: not hosts.running(2, "/raylet"), "the end of the old node", process, log=log
        )
        hosts.start_ray(2, cpus=2)
        wait_until(lambda: workers_of(output)[-1] == 2, "two workers", process, log=log)
        before = step_of(output)
        wait_until(lambda: step_of(output) >= before + 3, "steps", process, log=log)
        assert [len(hosts.running(host, "RayTrainWorker")) for host in range(3)] == [0, 1, 1]
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert_planned_samples(output, small_dataset, MANY)

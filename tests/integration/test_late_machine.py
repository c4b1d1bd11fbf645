"""A machine that cannot be had at first is asked for until it comes, hours later if need be."""

import time

import pytest
from clusters import autoscaled_cluster, wait_until
from commands import kill_session, start
from ray.train.v2._internal.execution.scaling_policy import AUTOSCALING_REQUESTS_EXPIRE_TIME_S
from test_elastic import command

from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# More steps than there is time for.
SETTINGS = ["train.workers=[1,2]", "train.standby=false", "train.steps=5000"]


def test_a_run_grows_when_the_cloud_has_machines_again(small_dataset, tmp_path, short_folder):
    output, log = tmp_path / "run", tmp_path / "log"
    with autoscaled_cluster(short_folder, cpus=2, most=1) as made:
        arguments = command(small_dataset, output, *SETTINGS)
        process = start(*arguments, log=log, environment=made.environment)

        def training(workers):
            last = read_events(str(output))[-1:]
            return [(e["event"], e.get("workers")) for e in last] == [("training", workers)]

        def wait(condition, what, seconds=400):
            wait_until(condition, what, process, seconds=seconds, log=log)

        wait(lambda: training(1), "training on the one machine there is")
        # Ray has forgotten by then what was asked for at the start.
        time.sleep(AUTOSCALING_REQUESTS_EXPIRE_TIME_S + 20)
        assert training(1)
        assert len(made.workers()) == 1
        made.allow(2)
        wait(lambda: len(made.workers()) == 2, "the second machine", seconds=90)
        wait(lambda: training(2), "training on both")
        kill_session(process)

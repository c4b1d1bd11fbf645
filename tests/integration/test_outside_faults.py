"""Faults of what a pretraining stands on: the store, the disk, the memory."""

import os
import resource
import subprocess
import threading

import psutil
import pytest
from clusters import training_workers, wait_until
from commands import start
from fault_proxy import Every, Faults
from test_elastic import STEPS, assert_planned_samples, command, step_of
from test_faults import events_of

from terrafm.storage import join
from terrafm.train.checkpoints.store import list_checkpoints
from terrafm.train.driver.events import read_events
from terrafm.train.metrics.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_store_is_down_for_a_minute_during_a_checkpoint(
    small_dataset, real_server, real_bucket, tmp_path
):
    output, log = join(real_bucket, "run"), tmp_path / "log"

    def checkpoints():
        return len(list_checkpoints(join(output, "checkpoints")))

    with real_server.behind() as (store, proxy):
        # More steps than a minute takes, and patience that ends before it does.
        settings = ("train.workers=1", "train.audit_samples=false", "train.steps=400")
        environment = store | {"TERRAFM_RETRY_SECONDS": "20", "TERRAFM_STALL_SECONDS": "2"}
        process = start(
            *command(small_dataset, output, *settings), log=log, environment=environment
        )
        wait_until(lambda: checkpoints() >= 2, "two checkpoints", process, log=log)
        proxy.plan = Faults(slow_down=Every(1))
        threading.Timer(60, lambda: setattr(proxy, "plan", Faults())).start()
        assert process.wait(timeout=1200) == 0, log.read_text()
    assert list_checkpoints(join(output, "checkpoints"))[-1][0] == 400
    assert len(events_of(output, "started")) == 1
    assert any("no checkpoint after step" in e["warning"] for e in events_of(output, "warning"))
    assert "no checkpoint after step" in " ".join(log.read_text().split())
    assert [line["step"] for line in read_metrics(output)] == list(range(1, 401))


def test_a_full_disk_costs_checkpoints_and_not_the_run(small_dataset, tmp_path):
    if os.geteuid():
        pytest.skip("a small disk needs root to be mounted")
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, timeout=30)
    try:
        output, filler = disk / "run", disk / "filler"
        process = start(*command(small_dataset, output, "train.workers=1"), log=log)
        folder = str(output / "checkpoints")
        wait_until(lambda: len(list_checkpoints(folder)) >= 2, "checkpoints", process, log=log)
        fill(filler)
        wait_until(lambda: events_of(output, "warning"), "a warning", process, log=log)
        filler.unlink()
        assert process.wait(timeout=1200) == 0, log.read_text()
        assert "no space left on device" in log.read_text().lower()
        assert len(events_of(output, "started")) == 1
        assert list_checkpoints(folder)[-1][0] == STEPS
        assert not list(output.glob(".staging-*"))
        assert_planned_samples(output, small_dataset)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=30)


def fill(path):
    """Until the disk takes no more."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def test_a_worker_that_runs_out_of_memory_is_started_again(small_dataset, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start(*command(small_dataset, output, "train.workers=2"), log=log)
    wait_until(lambda: step_of(output) >= 17, "step 17", process, log=log)
    worker = psutil.Process(training_workers()[1].pid)
    # No further mapping succeeds, as in a container at its limit.
    worker.rlimit(psutil.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    assert process.wait(timeout=1200) == 0, log.read_text()
    assert [event["workers"] for event in events_of(output, "started")] == [2, 2]
    (lost,) = events_of(output, "lost")
    assert "rank 1" in lost["reason"], read_events(str(output))
    assert_planned_samples(output, small_dataset)

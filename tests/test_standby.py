"""Processes that wait with their imports done, on a real Ray."""

import os
import resource
import sys
import threading
import time

import pytest
import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK

from terrafm.ray.standby import data_worker_environment, rank_environment, start_standby

MODULE = "terrafm.data.samples.builder"


class Actor:
    def facts(self):
        return os.getpid(), MODULE in sys.modules

    def start_standby(self, number):
        start_standby(number)

    def pages_mapped_again(self):
        """Page faults of using 256 MiB anew, in a thread, as a training step does."""
        import torch

        faults = []

        def work():
            for _ in range(3):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                torch.ones(64 * 2**20)
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return faults[-1]


@pytest.fixture
def start_actor(monkeypatch):
    """Starts actors in data workers' runtime environment."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="error")

    def start(variables=None):
        environment = {"env_vars": data_worker_environment() if variables is None else variables}
        return ray.remote(Actor).options(num_cpus=0, runtime_env=environment).remote()

    yield start
    ray.shutdown()


def wait_for_workers(number):
    """Until Ray has so many processes; returns their ids."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {worker.pid for worker in waiting()}
        if len(found) >= number:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not {number} processes: {found}")


def waiting():
    """Idle processes of this job that have done their imports."""
    import psutil

    def imported(process):
        # The module's own library is mapped.
        return any("blosc2" in mapping.path for mapping in process.memory_maps())

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() == "ray::IDLE" and imported(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_actors_get_the_processes_that_wait(start_actor):
    first = start_actor()
    assert ray.get(first.facts.remote(), timeout=60)[1] is False
    ray.get(first.start_standby.remote(2), timeout=60)
    ready = wait_for_workers(2)
    actors = [start_actor(), start_actor()]
    facts = ray.get([actor.facts.remote() for actor in actors], timeout=60)
    assert {process for process, _ in facts} == ready
    assert all(imported for _, imported in facts)
    # No process waits any more: this one starts as ever, and imports nothing ahead.
    late = start_actor()
    process, imported = ray.get(late.facts.remote(), timeout=60)
    assert process not in ready
    assert imported is False


@pytest.mark.slow
def test_more_than_ray_starts_at_once_come_all(start_actor):
    first = start_actor()
    ray.get(first.start_standby.remote(6), timeout=60)
    assert len(wait_for_workers(6)) == 6


def test_nothing_waits_without_a_hook(start_actor):
    other = start_actor({"SOMETHING": "else"})
    assert HOOK not in os.environ
    ray.get(other.start_standby.remote(1), timeout=60)
    time.sleep(3)
    assert waiting() == []


@pytest.mark.slow
def test_ranks_on_a_cpu_keep_freed_memory(start_actor):
    rank, other = start_actor(rank_environment(gpu=False)), start_actor({})
    kept, mapped = ray.get([a.pages_mapped_again.remote() for a in (rank, other)], timeout=120)
    # 65,536 pages, or 128 huge ones.
    assert kept < 10 < 100 < mapped

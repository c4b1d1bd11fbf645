import os
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group

from terrafm.clusters.patience import patient
from terrafm.errors import RayStartError
from terrafm.ray.runtime import ensure_ray, renew_ray


@pytest.fixture(autouse=True)
def no_ray_is_left(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    yield
    ray.shutdown()


def free_cpus():
    return ray.available_resources().get("CPU", 0.0)


@pytest.mark.slow
def test_renewing_frees_what_failed_work_still_holds():
    ensure_ray(2)
    held = placement_group([{"CPU": 2}])
    ray.get(held.ready(), timeout=60)
    assert free_cpus() == 0
    renew_ray(2)
    assert free_cpus() == 2
    # At Ray's own 15 a busy machine starves them.
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_ray_that_ran_before_is_used_and_never_restarted():
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error")
    before = ray.get_runtime_context().get_node_id()
    ensure_ray(4)
    renew_ray(4)
    assert ray.get_runtime_context().get_node_id() == before
    assert ray.cluster_resources()["CPU"] == 1


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    def time_out(**_):
        # As ray._private.node raises it.
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", time_out)
    with pytest.raises(RayStartError, match=r"Ray did not start: .* Repeat the command"):
        ensure_ray(2)
    assert "timed out during startup" in Path(ray._private.node.__file__).read_text()


def test_a_node_is_asked_for_as_long_as_its_raylet_lives(monkeypatch, caplog):
    monkeypatch.setattr("terrafm.clusters.patience._TELL_AFTER_SECONDS", 0.0)
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node_id": "a"}])

    def ask(address, node_id):
        assert (address, node_id) == ("127.0.0.1:1", "a")
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patient(ask, lambda: True, poll=0)("127.0.0.1:1", "a") == {"node_id": "a"}
    assert "Ray is still starting after 0 s: this machine is busy" in caplog.text
    answers = iter([RuntimeError("not yet")])
    with pytest.raises(RuntimeError, match="not yet"):
        patient(ask, lambda: False, poll=0)("127.0.0.1:1", "a")


def find_raylet():
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            if child.name() == "raylet":
                return child
        time.sleep(0.005)
    raise AssertionError("no raylet was started")


@pytest.mark.slow
def test_a_raylet_that_ends_while_it_starts_is_started_again(caplog):
    """As Ray's own does on a busy machine, when its agents take longer than 15 s."""
    killer = threading.Thread(target=lambda: find_raylet().kill())
    killer.start()
    ensure_ray(2)
    killer.join()
    assert "Ray gave up starting: this machine is busy; it is started again" in caplog.text
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=300) == 1
    # Ray itself leaves the others of the first start running.
    names = [child.name() for child in psutil.Process().children()]
    assert (names.count("gcs_server"), names.count("raylet")) == (1, 1)


@pytest.mark.slow
def test_a_raylet_that_takes_40_seconds_is_waited_for(caplog):
    def hold():
        raylet = find_raylet()
        raylet.suspend()
        time.sleep(40)
        raylet.resume()

    holding = threading.Thread(target=hold)
    holding.start()
    ensure_ray(1)
    holding.join()
    assert ray.cluster_resources()["CPU"] == 1
    assert "Ray is still starting" in caplog.text

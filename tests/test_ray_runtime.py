import pytest
import ray
from ray.util.placement_group import placement_group

from terrafm.ray_runtime import ensure_ray, renew_ray


@pytest.fixture(autouse=True)
def no_ray_is_left(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    yield
    ray.shutdown()


def free_cpus():
    return ray.available_resources().get("CPU", 0.0)


def test_renewing_frees_what_failed_work_still_holds():
    ensure_ray(2)
    held = placement_group([{"CPU": 2}])
    ray.get(held.ready(), timeout=60)
    assert free_cpus() == 0
    renew_ray(2)
    assert free_cpus() == 2


def test_a_ray_that_ran_before_is_used_and_never_restarted():
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error")
    before = ray.get_runtime_context().get_node_id()
    ensure_ray(4)
    renew_ray(4)
    assert ray.get_runtime_context().get_node_id() == before
    assert ray.cluster_resources()["CPU"] == 1

from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group

from terrafm.config import load_config
from terrafm.errors import TerraFMError, UsageError
from terrafm.ray_runtime import ensure_ray, renew_ray
from terrafm.train.run import pretrain


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


def test_a_ray_that_ran_before_is_used_and_never_restarted():
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error")
    before = ray.get_runtime_context().get_node_id()
    ensure_ray(4)
    renew_ray(4)
    assert ray.get_runtime_context().get_node_id() == before
    assert ray.cluster_resources()["CPU"] == 1


def test_a_cluster_that_leaves_no_cpu_to_read_data_is_refused(small_dataset, tmp_path):
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    config = load_config("demo", ["train.workers=2", "train.global_batch=8"])
    with pytest.raises(UsageError, match=r"has 2 CPUs, and train.workers=2 .* leave none to read"):
        pretrain(config, str(small_dataset), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_machine_too_busy_to_start_ray_is_one_line(monkeypatch):
    def time_out(**_):
        # As ray._private.node raises it, whose patience is 30 s.
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", time_out)
    with pytest.raises(TerraFMError, match=r"not start within 30 s: .*; repeat the command"):
        ensure_ray(2)
    assert "timed out during startup" in Path(ray._private.node.__file__).read_text()

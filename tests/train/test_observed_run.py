"""What a run under Ray leaves behind for those who watch it."""

import json

import pytest
import ray

from terrafm.config import load_config
from terrafm.errors import TerraFMError
from terrafm.train.driver.pretrain import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = ["train.global_batch=4", "train.micro_batch=2", "head.num_prototypes=32"]


@pytest.fixture(autouse=True)
def own_ray():
    yield
    ray.shutdown()


def test_a_profiled_run_has_its_metrics_and_its_trace(small_dataset, tmp_path):
    config = load_config("demo", [*SMALL, "train.steps=6", "train.profile_steps=2"])
    result = pretrain(config, small_dataset, str(tmp_path))
    last = result.metrics
    for key in ("tiles_per_second_per_worker", "tflops_per_worker", "memory_bytes"):
        assert last[key] > 0, key
    assert last["effective_rank"] > 1
    shares = [value for key, value in last.items() if key.startswith("share_")]
    assert sum(shares) + last["data_wait"] == pytest.approx(1.0, abs=1e-2)
    assert "mfu" not in last
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"step/data", "step/forward", "step/backward", "step/optimizer"} <= names
    assert (tmp_path / "profile" / "operators.txt").stat().st_size > 0
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_a_run_that_blows_up_ends_and_names_the_tiles(small_dataset, tmp_path):
    blown = ["optim.base_lr=1e30", "optim.warmup_epochs=0"]
    config = load_config("demo", [*SMALL, "train.steps=20", "train.workers=2", *blown])
    with pytest.raises(TerraFMError, match=r"17 times in a row.*nonfinite\.jsonl"):
        pretrain(config, small_dataset, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == set(range(1, 18))
    assert {line["rank"] for line in lines} == {0, 1}
    for line in lines:
        assert line["loss_finite"] is False
        assert len(line["tiles"]) == 2
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] is None

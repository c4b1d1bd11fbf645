"""A loss or gradient that is not finite on one rank: no rank changes anything, at every stage."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import run_ranks

from terrafm.data.samples.batch import SampleInfo
from terrafm.errors import TerraFMError
from terrafm.train.metrics.samples import append_nonfinite
from terrafm.train.worker.faulty_steps import SkipLimit, nonfinite_record, nonfinite_samples

SCRIPT = Path(__file__).with_name("nonfinite_ranks.py")
STAGES = (0, 1, 2, 3)
PARTS = ("student", "optimizer", "teacher", "centers")


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def world_size(request):
    return request.param


@pytest.fixture(scope="module")
def results(world_size, small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(SCRIPT, world_size, folder, small_dataset)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_poisoned_step_changes_not_a_bit(results, stage, kind):
    run = results[stage, kind]
    assert run["applied"] == [True, False, True]
    before, after, _ = run["states"]
    for part in PARTS:
        assert torch.equal(before[part], after[part]), part


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_next_good_step_goes_on_as_if_nothing_had_been(results, stage, kind):
    undisturbed, run = results[stage, "none"], results[stage, kind]
    assert undisturbed["applied"] == [True, True]
    for part in PARTS:
        assert torch.equal(undisturbed["states"][-1][part], run["states"][-1][part]), part
        assert not torch.equal(run["states"][1][part], run["states"][2][part]), part
        assert torch.isfinite(run["states"][2][part]).all(), part


@pytest.mark.parametrize("stage", STAGES)
def test_the_tile_with_the_bad_loss_is_named(results, world_size, stage):
    run = results[stage, "loss"]
    (record,) = run["records"]
    assert record["rank"] == world_size - 1
    assert record["step"] == 1
    assert record["loss_finite"] is False
    # The second row of the last rank's first micro-batch.
    assert [t["tile"] for t in record["tiles"]] == [run["tiles"][-1][1]]
    assert record["grad_norm"] in ("nan", "inf")


@pytest.mark.parametrize("stage", STAGES)
def test_where_only_a_gradient_is_bad_every_tile_of_the_step_is_named(results, world_size, stage):
    run = results[stage, "gradient"]
    assert [record["rank"] for record in run["records"]] == list(range(world_size))
    for record, tiles in zip(run["records"], run["tiles"], strict=True):
        assert record["loss_finite"] is True
        assert [t["tile"] for t in record["tiles"]] == tiles


def test_padding_is_never_named():
    names = ["a", "b", "pad"]
    samples = SampleInfo(names, np.zeros(3, np.int64), np.arange(3), torch.tensor([1.0, 1.0, 0.0]))
    batch = SimpleNamespace(samples=samples)
    record = nonfinite_record(
        3, 0, float("nan"), [batch], [torch.tensor([1.0, torch.nan, torch.nan])]
    )
    assert record["tiles"] == [{"tile": "b", "epoch": 0, "position": 1}]
    fine = nonfinite_record(3, 1, float("inf"), [batch], [torch.tensor([1.0, 2.0, torch.nan])])
    assert [t["tile"] for t in fine["tiles"]] == ["a", "b"]
    assert nonfinite_samples([record, fine]) == [record]
    assert nonfinite_samples([fine]) == [fine]


def test_the_file_holds_each_record_once(tmp_path):
    record = {"step": 3, "rank": 0, "loss_finite": False, "grad_norm": "nan", "tiles": []}
    for more in (record, record | {"step": 4}, record):
        append_nonfinite(str(tmp_path), [more])
    lines = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4]


def test_too_many_in_a_row_end_the_run_and_say_where_the_tiles_are():
    limit = SkipLimit(2)
    for applied in (False, False, True, False, False):
        limit.record(applied, 0)
    with pytest.raises(TerraFMError, match=r"step 7: .* 3 times in a row.*nonfinite\.jsonl"):
        limit.record(False, 7)
    assert limit.total == 5

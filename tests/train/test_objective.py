"""Choices beyond the paper in the real step: off by default, and free of how a batch is divided."""

from pathlib import Path

import pytest
from objective_ranks import BEYOND, STAGES, run
from ranks import run_ranks

from terrafm.config import Config

SCRIPT = Path(__file__).with_name("objective_ranks.py")


@pytest.fixture(scope="module")
def alone(small_dataset):
    """Two micro-batches of four in one plain process: the rows that two ranks have."""
    return run(small_dataset, BEYOND)


def test_all_of_them_are_off_by_default():
    config = Config()
    assert (config.loss.centering, config.loss.koleo_weight) == ("ema", 0.0)
    assert config.loss.masked_patch_weight == 0.0
    assert config.optim.clip_by == "global"


@pytest.mark.parametrize("choice", BEYOND)
def test_each_of_them_changes_what_is_learned(small_dataset, choice):
    plain, chosen = run(small_dataset, []), run(small_dataset, [choice])
    apart = max(float((chosen[1][n] - t).abs().max()) for n, t in plain[1].items())
    assert apart > 1e-5
    for term in ("koleo", "masked_patch"):
        assert (term in chosen[0][0]) == (term in choice)


@pytest.mark.parametrize("rows", [8, 2])
@pytest.mark.parametrize(
    "choice",
    [
        ["loss.centering=sinkhorn"],
        ["loss.masked_patch_weight=1"],
        ["loss.masked_patch_weight=1", "loss.centering=sinkhorn"],
    ],
    ids=" ".join,
)
def test_sinkhorn_and_masks_do_not_see_micro_batches(small_dataset, rows, choice):
    expected = run(small_dataset, choice)
    found = run(small_dataset, [*choice, f"train.micro_batch={rows}"])
    for one, other in zip(found[0], expected[0], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert_close(found[1], expected[1])


@pytest.fixture(
    scope="module", params=[2, pytest.param(1, marks=pytest.mark.slow)], ids="{}_ranks".format
)
def ranks(request, small_dataset, tmp_path_factory):
    return run_ranks(SCRIPT, request.param, tmp_path_factory.mktemp("ranks"), small_dataset)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_of_every_stage_train_like_one_process(ranks, alone, stage):
    by_rank, student = ranks[stage]
    for step, expected in enumerate(alone[0]):
        for name, value in expected.items():
            mean = sum(means[step][name] for means in by_rank) / len(by_rank)
            assert mean == pytest.approx(value, rel=2e-5, abs=1e-6), (step, name)
    assert_close(student, alone[1])


def assert_close(found, expected):
    for name, tensor in expected.items():
        # Of the whole tensor: AdamW moves a weight whose gradient is rounding, such as the bias of
        # the keys, by the full rate.
        apart = float((found[name] - tensor).norm())
        assert apart <= 1e-3 * (1 + float(tensor.norm())), (name, apart)

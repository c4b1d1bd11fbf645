"""Pending sums over micro-batches and ranks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import call_in_process, run_script
from two_ranks import learn_patches

from terrafm.losses import DINOLoss

PROTOTYPES = 13


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "student": torch.randn(4, 8, PROTOTYPES),
        "teacher": torch.randn(2, 8, PROTOTYPES),
        # Masked patches, all of them of crops of rank 1.
        "patches": torch.randn(5, PROTOTYPES),
        # No high-frequency sample in the first half: rank 0 of 2 has none.
        "high": torch.tensor([0, 0, 0, 0, 1, 0, 1, 1], dtype=torch.bool),
    }


def test_micro_batches_of_unequal_size_give_the_centers_of_the_whole_batch(batch):
    whole, parts = DINOLoss(PROTOTYPES), DINOLoss(PROTOTYPES)
    for _ in range(3):
        whole(batch["student"], batch["teacher"], 0.04, batch["high"])
        for rows in (slice(0, 1), slice(1, 6), slice(6, 8)):
            parts(
                batch["student"][:, rows],
                batch["teacher"][:, rows],
                0.04,
                batch["high"][rows],
                update_centers=False,
            )
        parts.update_centers()
        torch.testing.assert_close(parts.center, whole.center, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(
            parts.center_high_frequency, whole.center_high_frequency, atol=1e-7, rtol=1e-6
        )


def test_centers_stay_until_they_are_updated_and_discarded_sums_are_gone(batch):
    criterion = DINOLoss(PROTOTYPES)
    criterion(batch["student"], batch["teacher"], 0.04, batch["high"], update_centers=False)
    assert (criterion.center == 0).all()
    criterion.discard_pending()
    criterion.update_centers()
    assert (criterion.center == 0).all()
    assert (criterion.center_high_frequency == 0).all()


def test_a_call_that_updates_leaves_the_pending_sums_of_others_alone(batch):
    criterion = DINOLoss(PROTOTYPES, center_momentum=0.0)
    criterion.accumulate(torch.full((2, 8, PROTOTYPES), 5.0), batch["high"])
    criterion(batch["student"], batch["teacher"], 0.04, batch["high"], update_centers=True)
    torch.testing.assert_close(criterion.center, batch["teacher"].mean((0, 1)))
    criterion.update_centers()
    torch.testing.assert_close(criterion.center, torch.full((PROTOTYPES,), 5.0))


def test_padding_rows_weigh_nothing(batch):
    padded, plain = DINOLoss(PROTOTYPES), DINOLoss(PROTOTYPES)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    first = padded(batch["student"], batch["teacher"], 0.04, batch["high"], sample_weight=weight)
    second = plain(batch["student"][:, :6], batch["teacher"][:, :6], 0.04, batch["high"][:6])
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(padded.center, plain.center)
    torch.testing.assert_close(padded.center_high_frequency, plain.center_high_frequency)


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_two_processes_equal_one_at_the_same_global_batch(batch, tmp_path, centering):
    np.savez(tmp_path / "batch.npz", **{k: v.numpy() for k, v in batch.items()})
    script = Path(__file__).with_name("two_ranks.py")
    with ThreadPoolExecutor(2) as waiting:
        ranks = [
            waiting.submit(call_in_process, run_script, [script, tmp_path, r, centering])
            for r in range(2)
        ]
    assert [rank.result() for rank in ranks] == [(0, "", "")] * 2
    alone = DINOLoss(PROTOTYPES, centering=centering, masked_patch=True)
    losses = [
        alone(batch["student"], batch["teacher"], 0.04, batch["high"]).item() for _ in range(3)
    ]
    halves = [np.load(tmp_path / f"rank{r}.npz") for r in range(2)]
    np.testing.assert_allclose((halves[0]["loss"] + halves[1]["loss"]) / 2, losses, rtol=1e-6)
    for half in halves:
        np.testing.assert_allclose(half["center"], alone.center, atol=1e-7)
        np.testing.assert_allclose(
            half["center_high_frequency"], alone.center_high_frequency, atol=1e-7
        )
        np.testing.assert_allclose(half["prototype_share"], alone.use.share, atol=1e-7)
    patch_losses = [learn_patches(alone, batch["patches"]) for _ in range(2)]
    assert halves[0]["patch_losses"].shape == (2, 0)
    np.testing.assert_allclose(halves[1]["patch_losses"], torch.stack(patch_losses), rtol=1e-5)
    assert alone.masked_patch.center.any()
    for half in halves:
        np.testing.assert_allclose(half["patch_center"], alone.masked_patch.center, atol=1e-7)

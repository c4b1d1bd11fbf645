"""Masks of patches: how much they cover, in what shape, and what they depend on."""

import numpy as np
import pytest
import torch

from terrafm.data.samples.masks import MaskedPatches, PatchMasking

SIDE = 14
SAMPLES = np.arange(400)


def draw(samples=SAMPLES, *, seed=7, epoch=0, crops=2, side=SIDE, ratio=(0.1, 0.5), chance=0.5):
    epochs = np.full(len(samples), epoch)
    return PatchMasking(seed, ratio, chance).draw(epochs, samples, crops, side)


@pytest.mark.parametrize("chance", [0.2, 0.5, 1.0])
def test_as_many_crops_are_masked_as_was_asked_and_as_many_of_their_patches(chance):
    masks = draw(chance=chance)
    assert masks.shape == (2, len(SAMPLES), SIDE**2)
    shares = masks.mean(-1)
    masked = shares > 0
    deviation = np.sqrt(chance * (1 - chance) / masked.size)
    assert abs(masked.mean() - chance) <= 4 * deviation
    # Uniform between both ends, up to the rounding to whole patches.
    found = shares[masked]
    rounding = 0.5 / SIDE**2
    assert found.min() >= 0.1 - rounding
    assert found.max() <= 0.5 + rounding
    uniform = (0.5 - 0.1) / np.sqrt(12)
    assert found.mean() == pytest.approx(0.3, abs=4 * uniform / np.sqrt(found.size))
    assert found.std() == pytest.approx(uniform, rel=0.15)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 14, 32])
@pytest.mark.parametrize("ratio", [1e-9, 0.25, 0.5, 0.9, 1.0])
def test_a_fixed_ratio_is_met_to_the_patch_and_never_nothing(side, ratio):
    counts = draw(SAMPLES[:20], side=side, ratio=(ratio, ratio), chance=1.0).sum(-1)
    assert (counts == max(1, round(ratio * side**2))).all()


def test_masks_are_blocks():
    """A masked patch's right neighbour is masked far more often than chance has it."""
    masks = draw(ratio=(0.3, 0.3), chance=1.0).reshape(-1, SIDE, SIDE)
    both = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert both > 0.6
    # Nor do they prefer a side of the crop.
    assert masks.mean((0, 1)) == pytest.approx(masks.mean((0, 1))[::-1], abs=0.05)


def test_a_mask_depends_on_its_sample_and_crop_alone():
    whole = draw(crops=2)
    picked = np.array([5, 399, 0])
    np.testing.assert_array_equal(draw(SAMPLES[picked], crops=2), whole[:, picked])
    np.testing.assert_array_equal(draw(crops=3)[:2], whole)
    for other in (draw(seed=8), draw(epoch=1), draw(SAMPLES + 1000), whole[::-1]):
        assert (other != whole).any(-1).mean() > 0.5


def test_what_a_seed_means_stays():
    """Of a run that goes on with another version; a change of it needs its reason."""
    (mask,) = draw(np.array([3]), crops=1, side=6, ratio=(0.4, 0.4), chance=1.0)[0]
    rows = ["".join("#" if on else "." for on in row) for row in mask.reshape(6, 6)]
    assert rows == ["......", "##....", "######", "..####", ".....#", ".....#"]


def test_positions_and_shares_of_a_batch():
    masks = np.zeros((2, 3, 4), dtype=bool)
    masks[0, 1, [0, 3]] = True
    masks[1, 0, 2] = True
    found = MaskedPatches.of(masks, torch.device("cpu"))
    assert found.position.tolist() == [1 * 4 + 0, 1 * 4 + 3, 3 * 4 + 2]
    assert found.sample.tolist() == [1, 1, 0]
    assert found.share.tolist() == [0.25, 0.25, 0.5]
    nothing = MaskedPatches.of(np.zeros((2, 3, 4), dtype=bool), torch.device("cpu"))
    assert [len(part) for part in (nothing.position, nothing.sample, nothing.share)] == [0, 0, 0]

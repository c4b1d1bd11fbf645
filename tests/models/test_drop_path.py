"""Keyed stochastic depth: the hash, the distribution, independence of the batch."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from terrafm.models.drop_path import drop_path_scales, hash_uniform


def splitmix_finaliser(bits):
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    counter=st.integers(0, 2**20),
)
def test_hash_equals_splitmix64_on_unsigned_integers(keys, counter):
    with np.errstate(over="ignore"):
        state = splitmix_finaliser(np.array(keys, dtype=np.int64).view(np.uint64))
        step = np.uint64(counter + 1) * np.uint64(0x9E3779B97F4A7C15)
        expected = splitmix_finaliser(state + step) >> np.uint64(40)
    hashed = hash_uniform(torch.tensor(keys), torch.tensor(counter))
    np.testing.assert_array_equal(hashed.numpy(), expected.astype(np.int64))


def test_splitmix64_published_first_outputs():
    """Seed 0 of the reference generator starts 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4."""
    # The key is scrambled before use, and 0 scrambles to 0: key 0 is the reference's seed 0.
    hashed = hash_uniform(torch.tensor(0), torch.arange(2)).tolist()
    assert hashed == [0xE220A8397B1DCDAF >> 40, 0x6E789E6AA1B965F4 >> 40]


def test_branches_are_dropped_at_their_rate_and_independently():
    count = 200_000
    rates = torch.tensor([0.0, 0.05, 0.1, 0.5])
    scales = drop_path_scales(torch.arange(count), rates)
    assert scales.shape == (4, 2, count)
    dropped = (scales == 0).double().mean(-1)
    deviation = (rates * (1 - rates) / count).sqrt().unsqueeze(1)
    assert ((dropped - rates.unsqueeze(1)).abs() <= 4 * deviation).all()
    assert (scales[0] == 1).all()
    torch.testing.assert_close(scales[2].max(), torch.tensor(1 / 0.9))
    correlation = torch.corrcoef(scales[1:].flatten(0, 1).double()) - torch.eye(6)
    assert correlation.abs().max() < 5 / count**0.5
    neighbours = torch.corrcoef(torch.stack([scales[3, 0, :-1], scales[3, 0, 1:]]))[0, 1]
    assert neighbours.abs() < 5 / count**0.5


def test_masks_do_not_depend_on_the_batch():
    rates = torch.linspace(0, 0.5, 12)
    keys = torch.randint(-(2**62), 2**62, (64,), generator=torch.Generator().manual_seed(0))
    whole = drop_path_scales(keys, rates)
    order = torch.randperm(64)
    assert torch.equal(drop_path_scales(keys[order], rates), whole[..., order])
    assert torch.equal(drop_path_scales(keys[5:6], rates), whole[..., 5:6])
    assert torch.equal(drop_path_scales(keys, rates[:3]), drop_path_scales(keys, rates)[:3])

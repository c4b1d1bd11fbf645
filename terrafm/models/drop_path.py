"""Stochastic depth whose masks are a pure function of a sample's key.

A global generator would tie the masks to the batch's composition and to the number of workers.
Here a mask is a hash of (key, block, branch): a sample keeps its masks in any batch, on any
device, after any restart.
"""

import torch
from torch import Tensor

_INCREMENT = 0x9E3779B97F4A7C15  # odd integer nearest to 2^64 / golden ratio
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_BITS = 24  # a uniform number of this many bits is exact in float32


def hash_uniform(key: Tensor, counter: Tensor) -> Tensor:
    """Uniform numbers from SplitMix64 with one stream per key.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. The key is
    scrambled first, so that consecutive keys give unrelated streams.

    Args:
        key: int64, any shape.
        counter: int64, broadcast against `key`.

    Returns:
        int64 in [0, 2^24), of the broadcast shape; equal on every device.
    """
    bits = _scramble(_scramble(key) + (counter + 1) * _signed(_INCREMENT))
    return _shift_right(bits, 64 - _BITS)


def drop_path_scales(key: Tensor, rates: Tensor) -> Tensor:
    """Factor of every residual branch of every image.

    A branch is kept with probability 1 - rate and then scaled by 1 / (1 - rate), so that its
    expectation is unchanged (Huang et al., "Deep networks with stochastic depth", 2016).

    Args:
        key: (n,) int64, one per image.
        rates: (depth,) drop rates in [0, 1), by block.

    Returns:
        (depth, 2, n) float32; branch 0 is attention, branch 1 the MLP.
    """
    depth = len(rates)
    counter = torch.arange(2 * depth, device=key.device).view(depth, 2, 1)
    rates = rates.to(key.device, torch.float32).view(depth, 1, 1)
    kept: Tensor = hash_uniform(key, counter) >= rates * 2**_BITS
    return kept.float() / (1 - rates)


def _scramble(bits: Tensor) -> Tensor:
    for shift, multiplier in _MULTIPLIERS:
        bits = (bits ^ _shift_right(bits, shift)) * _signed(multiplier)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, shift: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it the logical shift of uint64.
    return (bits >> shift) & ((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value

"""Which patches of a student's global crops are masked: rectangles, at random.

Everything random about a mask comes from (seed, epoch, position, crop), on a counter of its own
beside that of the views: a sample keeps its masks on any rank and in any micro-batch, and masking
changes no crop.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Part of what a seed means. The views of crops.py have stream 1.
_STREAM = 2
# Patches of the smallest rectangle, its most extreme aspect ratio, and how many in a row may not
# fit before single patches fill the rest; DINOv2's numbers.
_SMALLEST, _ASPECT, _ATTEMPTS = 4, 1 / 0.3, 10


# DINOv2's.
MASK_RATIO, MASK_PROBABILITY = (0.1, 0.5), 0.5


@dataclass(frozen=True)
class PatchMasking:
    """Block-wise masks as in iBOT (arXiv 2111.07832), drawn for each crop alone.

    DINOv2 (arXiv 2304.07193) spreads the ratios evenly over the crops of one batch on one GPU.
    Here each crop draws its own, so that a mask depends on its sample only; the expected share is
    the same.

    Attributes:
        seed: of the run.
        ratio: smallest and largest share of a masked crop's patches; uniform between them.
        probability: of a crop to be masked at all.
    """

    seed: int
    ratio: tuple[float, float] = MASK_RATIO
    probability: float = MASK_PROBABILITY

    def draw(
        self, epochs: NDArray[np.int64], positions: NDArray[np.int64], crops: int, side: int
    ) -> NDArray[np.bool_]:
        """Masks of the global crops of n samples.

        Args:
            epochs: (n,) epoch of each sample.
            positions: (n,) position in the epoch.
            crops: global crops of a sample (G).
            side: of a crop's grid, in patches.

        Returns:
            (G, n, side * side), row by row; a masked crop has at least one masked patch.
        """
        masks = np.zeros((crops, len(epochs), side, side), dtype=np.bool_)
        low, high = self.ratio
        for row, sample in enumerate(zip(positions.tolist(), epochs.tolist(), strict=True)):
            for crop in range(crops):
                bits = np.random.Philox(key=[self.seed, _STREAM], counter=[0, crop, *sample])
                chance, share = _uniform(bits, 2)
                if chance < self.probability:
                    count = max(1, round((low + (high - low) * share) * side**2))
                    _mask(masks[crop, row], count, bits)
        return masks.reshape(crops, len(epochs), side**2)


@dataclass(frozen=True)
class MaskedPatches:
    """The m masked patches of B samples' G global crops of N patches.

    Attributes:
        position: (m,) int64, image * N + patch with image = crop * B + sample, ascending.
        sample: (m,) int64, of each.
        share: (m,) float32 that each is of its sample's loss: 1 / (G * masked patches of its
            crop), as in DINOv2, so that crops without a mask count 0.
    """

    position: Tensor
    sample: Tensor
    share: Tensor

    @classmethod
    def of(cls, masks: NDArray[np.bool_], device: torch.device) -> Self:
        """From masks (G, B, N), made on the CPU: how many there are decides shapes."""
        crop, sample, _ = np.nonzero(masks)
        share = (1 / (len(masks) * masks.sum(-1)[crop, sample])).astype(np.float32)
        parts = (torch.from_numpy(part) for part in (np.flatnonzero(masks), sample, share))
        return cls(*(part.to(device, non_blocking=True) for part in parts))


def _mask(mask: NDArray[np.bool_], count: int, bits: np.random.Philox) -> None:
    """Masks exactly `count` of the grid: rectangles while they fit, then single patches."""
    side, failed = len(mask), 0
    while count and failed < _ATTEMPTS:
        size, aspect, top, left = _uniform(bits, 4)
        area = _SMALLEST + (count - _SMALLEST) * size
        ratio = _ASPECT ** (2 * aspect - 1)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        failed += 1
        if max(height, width) >= side:
            continue
        top, left = int(top * (side - height + 1)), int(left * (side - width + 1))
        block = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= count:
            block[:] = True
            count -= added
            failed = 0
    if count:
        free = np.flatnonzero(~mask)
        order = np.argsort(bits.random_raw(len(free)), kind="stable")
        mask.flat[free[order[:count]]] = True


def _uniform(bits: np.random.Philox, count: int) -> list[float]:
    uniform: list[float] = ((bits.random_raw(count) >> np.uint64(11)) * 2.0**-53).tolist()
    return uniform

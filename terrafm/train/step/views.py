"""From the crops of a micro-batch to what a network takes: chosen, unfolded, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.data.samples.batch import Crops
from terrafm.modalities import MODALITIES
from terrafm.models.packing import Packed, patchify, places
from terrafm.models.patch_embed import PATCH_SIZE


class ViewPacker:
    """Packs the views of a network, its own modalities of each image, into one sequence.

    Storage integers become patches of normalised pixels in one pass that chooses, converts and
    unfolds, and one that normalises: x * scale / std - mean / std, nodata exactly 0. Against
    (x * scale - mean) / std, which `terrafm.data.samples.batch.normalise` computes, that differs
    by rounding.

    Args:
        statistics: modality -> (mean (C,), std (C,)) in physical units.
        order: of the modalities, as the encoder has them.
        device: where the networks run.
        dtype: of the patches: bfloat16 where the patch embedding would convert them anyway.
    """

    def __init__(
        self,
        statistics: Mapping[str, tuple[Tensor, Tensor]],
        order: Sequence[str],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._order = order
        self._device = device
        self._dtype = dtype
        self._affine = {m: self._per_pixel(m, *both) for m, both in statistics.items()}

    def pack(self, crops: Sequence[Crops], drawn: Sequence[Mapping[str, Tensor]]) -> Packed:
        """The views that a network has drawn.

        Args:
            crops: of each size.
            drawn: of each size, modality -> (n_m,) bool on the CPU, which of its rows.
        """
        rows = [{m: np.flatnonzero(mask.numpy()) for m, mask in each.items()} for each in drawn]
        grids = []
        for each in crops:
            height, width = next(iter(each.pixels.values())).shape[-2:]
            grids.append((each.size, height // PATCH_SIZE, width // PATCH_SIZE))
        image = [
            {m: each.image[m].numpy()[index] for m, index in chosen.items()}
            for each, chosen in zip(crops, rows, strict=True)
        ]
        place = places(image, grids, self._order)
        on_device = self._indices([*(index for each in rows for index in each.values()), place])
        chosen = iter(on_device)
        pixels: dict[str, list[Tensor]] = {m: [] for m in self._affine}
        for each, held in zip(crops, rows, strict=True):
            for m, index in held.items():
                pixels[m].append(_rows(each.pixels[m], next(chosen), len(index)))
        patches = {m: self._normalised(m, parts) for m, parts in pixels.items() if parts}
        return Packed(patches, next(chosen).view(2, -1), grids)

    def _indices(self, arrays: Sequence[NDArray[np.int64]]) -> list[Tensor]:
        """Several arrays on the device, by one copy."""
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        moved = flat.to(self._device, non_blocking=True)
        return list(torch.split(moved, [array.size for array in arrays]))

    def _normalised(self, modality: str, parts: Sequence[Tensor]) -> Tensor:
        """(P_m, C * S^2) of images (n, C, H, W) of several sizes, storage integers."""
        sensor = MODALITIES[modality]
        side = PATCH_SIZE
        unfolded = [patchify(part, side) for part in parts]
        counts = [u.shape[0] * u.shape[1] * u.shape[2] for u in unfolded]
        patches = torch.empty(
            (sum(counts), sensor.channels * side * side), dtype=torch.float32, device=self._device
        )
        for target, source in zip(torch.split(patches, counts), unfolded, strict=True):
            target.view(source.shape).copy_(source)
        missing = patches == sensor.nodata
        factor, offset = self._affine[modality]
        out = patches if self._dtype == patches.dtype else patches.new_empty(0, dtype=self._dtype)
        return torch.addcmul(offset, patches, factor, out=out).masked_fill_(missing, 0.0)

    def _per_pixel(self, modality: str, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset of each pixel of a patch, (C * S^2,) float32."""
        mean, std = mean.double(), std.double()
        both = MODALITIES[modality].scale / std, -mean / std
        factor, offset = (
            each.float().to(self._device).repeat_interleave(PATCH_SIZE**2) for each in both
        )
        return factor, offset


def _rows(pixels: Tensor, index: Tensor, count: int) -> Tensor:
    """Chosen rows; those of all are the tensor itself."""
    if count == len(pixels):
        return pixels
    if pixels.dtype == torch.uint16:
        # Indexing knows no uint16.
        return pixels.view(torch.int16).index_select(0, index).view(torch.uint16)
    return pixels.index_select(0, index)

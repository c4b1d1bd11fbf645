"""Images of several crop sizes as one sequence: what a step's networks take.

Every layer of the encoder but attention works on single tokens. So the crops of all sizes go
through it together, each layer once, and only attention takes the sizes one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Grid = tuple[int, int, int]
"""Images of one size, and their rows and columns of patches."""


@dataclass
class Packed:
    """Patches of a batch in which every image has its own set of modalities.

    Positions count through the patches of all images, size after size.

    Attributes:
        patches: modality -> (P_m, C_m * S^2) normalised pixels of the patches that it has, bands
            outermost; a modality may be left out.
        place: (2, sum of P_m) int64, of each of these patches, in the order of
            `PatchEmbed.modalities`: its position, and its modality's number * P + position.
        grids: of each size; their patches are P.
        drop_path_key: (images,) int64 keys of the stochastic depth masks, None for no drop.
        masked: (m,) positions, of the first size, whose normed tokens are wanted too; each at
            most once.
    """

    patches: dict[str, Tensor]
    place: Tensor
    grids: Sequence[Grid]
    drop_path_key: Tensor | None = None
    masked: Tensor | None = None

    @property
    def positions(self) -> int:
        """P, patches of all images."""
        return sum(images * height * width for images, height, width in self.grids)


def places(
    image: Sequence[Mapping[str, NDArray[np.int64]]], grids: Sequence[Grid], order: Sequence[str]
) -> NDArray[np.int64]:
    """`Packed.place` for rows of images, on the host: it decides nothing but is needed at once.

    Args:
        image: of each size, modality -> (n_m,) the image of that size that each row is of.
        grids: of each size.
        order: of the modalities.
    """
    patches = [height * width for _, height, width in grids]
    bases = np.cumsum([0, *(g[0] * n for g, n in zip(grids, patches, strict=True))])
    found = []
    for number, modality in enumerate(order):
        pieces = [
            (base + each[modality][:, None] * count + np.arange(count)).ravel()
            for each, base, count in zip(image, bases[:-1], patches, strict=True)
            if modality in each
        ]
        position = np.concatenate([np.zeros(0, np.int64), *pieces])
        found.append(np.stack([position, position + number * bases[-1]]))
    return np.concatenate(found, axis=1)


def patchify(images: Tensor, side: int) -> Tensor:
    """(n, C, H, W) to a view (n, H / side, W / side, C, side, side)."""
    return images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)


def pack_images(
    pixels: Mapping[str, Tensor],
    image: Mapping[str, Tensor],
    size: int,
    order: Sequence[str],
    side: int,
) -> Packed:
    """Images of one size, as `Encoder.forward_views` takes them."""
    some = next(iter(pixels.values()))
    grid = (size, some.shape[-2] // side, some.shape[-1] // side)
    rows = {m: image[m].cpu().numpy() for m in pixels}
    place = torch.from_numpy(places([rows], [grid], order)).to(some.device, non_blocking=True)
    patches = {
        m: patchify(x, side).reshape(-1, x.shape[1] * side * side) for m, x in pixels.items()
    }
    return Packed(patches, place, [grid])

"""Multi-crop on the training device: whole tiles come in, the crops are cut there.

The same crops as `terrafm.data.samples.crops` makes on the processor, up to rounding: area
averaging along an axis that shrinks, bilinear along one that grows. Both are linear and
separable, so a crop is two matrix products, rows @ window @ columns^T, and a batch of crops is a
batch of them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.data.samples.batch import Batch, Crops, SampleInfo, pin
from terrafm.data.samples.builder import BatchRows
from terrafm.data.samples.crops import Cropper, Views
from terrafm.data.shards.manifest import CellGroup
from terrafm.modalities import MODALITIES

# Images cut at once: bounds the float32 windows, about 1 GB for whole tiles of 534 px.
_AT_ONCE = 64


@dataclass
class TileBatch:
    """One micro-batch of B rows before its crops are cut; `to` makes the `Batch`.

    Attributes:
        cropper: of the dataset.
        views: of the B samples.
        tiles: cell group name -> (n, bands, h, w) storage integers of the rows that need it.
        slots: modality -> (B,) place of each row in `tiles`, -1 where the row has no need of it.
        high_frequency: (B,) bool, see `Batch`.
        samples: of the rows.
    """

    cropper: Cropper
    views: Views
    tiles: dict[str, Tensor]
    slots: dict[str, NDArray[np.int64]]
    high_frequency: Tensor
    samples: SampleInfo

    def to(self, device: torch.device | str) -> Batch:
        """Copies the tiles to a device and cuts the crops there."""
        device = torch.device(device)
        tiles = {name: stack.to(device, non_blocking=True) for name, stack in self.tiles.items()}
        n_global, n_views = self.views.teacher.shape[1], len(self.views.sizes)
        return Batch(
            global_crops=self._crops(tiles, range(n_global), True, device),
            local_crops=(
                self._crops(tiles, range(n_global, n_views), False, device)
                if n_views > n_global
                else None
            ),
            drop_path_key=torch.from_numpy(np.ascontiguousarray(self.views.drop_path_key.T)).to(
                device
            ),
            high_frequency=self.high_frequency.to(device),
            samples=replace(self.samples, weight=self.samples.weight.to(device)),
        )

    def _crops(
        self, tiles: dict[str, Tensor], crops: range, taught: bool, device: torch.device
    ) -> Crops:
        batch, size = len(self.samples), int(self.views.sizes[crops.start])
        made = Crops(batch * len(crops), {}, {}, {}, {} if taught else None)
        for m, name in enumerate(self.views.modalities):
            crop, row = np.nonzero(self.views.drawn[:, crops.start : crops.stop, m].T)
            made.pixels[name] = self._pixels(tiles, name, row, crops.start + crop, size, device)
            made.image[name] = torch.from_numpy(crop * batch + row)
            student = self.views.student[row, crops.start + crop, m]
            made.student[name] = torch.from_numpy(student)
            if made.teacher is not None:
                teacher = self.views.teacher[row, crop, m]
                made.teacher[name] = torch.from_numpy(teacher)
        return made

    def _pixels(
        self,
        tiles: dict[str, Tensor],
        name: str,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        size: int,
        device: torch.device,
    ) -> Tensor:
        modality = MODALITIES[name]
        made = torch.empty(
            (len(rows), modality.channels, size, size),
            dtype=getattr(torch, modality.dtype),
            device=device,
        )
        for group in self.cropper.groups:
            if group.modality == name:
                channels = [modality.bands.index(band) for band in group.bands]
                for part in _parts(len(rows)):
                    boxes = _boxes(self.views, rows[part], views[part], self.cropper.unit, group)
                    slots = torch.from_numpy(self.slots[name][rows[part]]).to(device)
                    fill = [self.cropper.fill[name][channel] for channel in channels]
                    cut = cut_crops(tiles[group.name], slots, boxes, size, fill, modality.nodata)
                    made.view(torch.int16)[part, channels] = cut.view(torch.int16)
        return made


@dataclass(frozen=True)
class _Boxes:
    """(n,) pixels of the group's grid, and how each crop is turned."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    turns: Tensor


def cut_crops(
    tiles: Tensor, slots: Tensor, boxes: "_Boxes", size: int, fill: list[int], nodata: int
) -> Tensor:
    """Cuts n crops out of a stack of tiles.

    Args:
        tiles: (N, bands, H, W) storage integers.
        slots: (n,) which tile each crop is from.
        boxes: where, and how turned.
        size: side S of a crop.
        fill: storage value per band in place of nodata while resizing.
        nodata: storage value of a missing pixel.

    Returns:
        (n, bands, S, S) storage integers; pixels that are mostly missing hold `nodata`.
    """
    device, dtype = tiles.device, tiles.dtype
    window, top, left = _windows(tiles, slots, boxes)
    rows = resize_weights(
        boxes.top.to(device) - top, boxes.height.to(device), window.shape[-2], size
    )
    columns = resize_weights(
        boxes.left.to(device) - left, boxes.width.to(device), window.shape[-1], size
    )
    # A mirrored crop takes its columns from the right.
    columns = torch.where(boxes.flip.to(device)[:, None, None], columns.flip(1), columns)
    rows, columns = rows[:, None], columns[:, None].transpose(-1, -2)
    missing = window == nodata
    gaps = bool(missing.any())
    values = window.to(torch.float32)
    if gaps:
        replacement = torch.tensor(fill, dtype=torch.float32, device=device)[:, None, None]
        values = torch.where(missing, replacement, values)
    limits = torch.iinfo(dtype)
    cut = (rows @ values @ columns).round_().clamp_(limits.min, limits.max).to(torch.int32)
    if gaps:
        cut[(rows @ missing.to(torch.float32) @ columns) > 0.5] = nodata
    turned = torch.empty_like(cut)
    for turns in range(4):
        here = (boxes.turns == turns).to(device)
        turned[here] = torch.rot90(cut[here], -turns, (-2, -1))
    # By way of int16, which every device can write; the bits are the same.
    return turned.to(torch.int16).view(dtype)


def resize_weights(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """Weights of each input pixel in each output pixel along one axis.

    Area averaging where `length` > `size`: an output pixel is the mean of the ground it covers.
    Else bilinear with half-pixel centers, the border repeated.

    Args:
        start: (n,) first input pixel.
        length: (n,) input pixels.
        full: pixels of the axis.
        size: output pixels.

    Returns:
        (n, size, full) float32, rows sum to 1.
    """
    device = start.device
    start, length = (t.to(torch.float32)[:, None, None] for t in (start, length))
    ratio = length / size
    output = torch.arange(size, dtype=torch.float32, device=device)[None, :, None]
    pixel = torch.arange(full, dtype=torch.float32, device=device)[None, None, :] - start
    # The last output pixel ends with the box, not a rounding behind it.
    end = torch.minimum((output + 1) * ratio, length)
    covered = torch.minimum(pixel + 1, end) - torch.maximum(pixel, output * ratio)
    area = covered.clamp_(min=0) / ratio
    center = ((output + 0.5) * ratio - 0.5).clamp_(min=0)
    center = torch.minimum(center, length - 1)
    linear = (1 - (pixel - center).abs()).clamp_(min=0)
    return torch.where(ratio > 1, area, linear)


def assemble_tiles(
    cropper: Cropper,
    views: Views,
    parts: Sequence[BatchRows],
    *,
    high_frequency: NDArray[np.bool_],
    samples: SampleInfo,
) -> TileBatch:
    """Gathers the tiles of B samples; `terrafm.data.samples.batch.assemble` does so with crops.

    Args:
        cropper: of the dataset.
        views: of the B samples.
        parts: of the B samples, in order.
        high_frequency: (B,).
        samples: of the B rows.
    """
    needed = cropper.needed(views)
    bounds = np.cumsum([0, *(part.rows for part in parts)])
    owner = np.repeat(np.arange(len(parts)), np.diff(bounds))
    ends = np.concatenate(
        [cropper.tile_ends(views.rows(*pair)) for pair in itertools.pairwise(bounds.tolist())]
    )
    tiles, slots = {}, {}
    for g, group in enumerate(cropper.groups):
        here = needed[:, g]
        slots[group.modality] = np.where(here, np.cumsum(here) - 1, -1)
        stack = pin((int(here.sum()), *group.shape), group.dtype)
        flat = stack.numpy().view(np.uint16).reshape(len(stack), -1)
        for slot, row in enumerate(np.flatnonzero(here).tolist()):
            end = int(ends[row, g])
            flat[slot] = parts[owner[row]].pixels[end - flat.shape[1] : end]
        tiles[group.name] = stack
    return TileBatch(
        cropper=cropper,
        views=views,
        tiles=tiles,
        slots=slots,
        high_frequency=torch.from_numpy(high_frequency),
        samples=samples,
    )


def _parts(count: int) -> Iterator[slice]:
    for first in range(0, count, _AT_ONCE):
        yield slice(first, min(first + _AT_ONCE, count))


def _boxes(
    views: Views,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int64],
    unit: int,
    group: CellGroup,
) -> _Boxes:
    box = torch.from_numpy(views.box[rows, numbers] * (unit // group.gsd))
    flip, turns = views.flip[rows, numbers], views.turns[rows, numbers]
    top, left, height, width = box.unbind(1)
    return _Boxes(top, left, height, width, torch.from_numpy(flip), torch.from_numpy(turns))


def _windows(tiles: Tensor, slots: Tensor, boxes: _Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """The part of each crop's tile that holds its box, all of one shape, and their corners."""
    device = tiles.device
    corners, indices = [], []
    for start, length, full in (
        (boxes.top, boxes.height, tiles.shape[-2]),
        (boxes.left, boxes.width, tiles.shape[-1]),
    ):
        side = int(length.max())
        corner = start.clamp(max=full - side).to(device)
        corners.append(corner)
        indices.append(corner[:, None] + torch.arange(side, device=device))
    bands = torch.arange(tiles.shape[1], device=device)[None, :, None, None]
    rows, columns = indices[0][:, None, :, None], indices[1][:, None, None, :]
    # Not every device can index uint16.
    window = tiles.view(torch.int16)[slots[:, None, None, None], bands, rows, columns]
    if tiles.dtype == torch.uint16:
        window = window.to(torch.int32) & 0xFFFF
    return window, corners[0], corners[1]

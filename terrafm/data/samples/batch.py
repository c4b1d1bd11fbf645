"""One micro-batch: crops gathered by size and modality, ready for the device."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.modalities import MODALITIES

if TYPE_CHECKING:
    # Only named: the training step takes batches and must not need what makes them.
    from terrafm.data.samples.builder import BatchRows
    from terrafm.data.samples.crops import Views

# Pieces of a block in the object store are read-only, and nothing writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", module=__name__)


@dataclass
class Crops:
    """All crops of one size of a micro-batch of B samples; image index = crop * B + sample.

    Attributes:
        size: number of images.
        pixels: modality -> (n_m, C_m, S, S) storage integers; n_m may be 0.
        image: modality -> (n_m,) int64 index of the image that each belongs to, ascending.
        student: modality -> (n_m,) bool, drawn by the student's view of that image.
        teacher: modality -> (n_m,) bool, drawn by the teacher's view; None for local crops.

    What was drawn, and for which image, stays on the CPU: how many images a view has decides
    shapes, and asking a GPU for a shape waits for everything that it still has to do.
    """

    size: int
    pixels: dict[str, Tensor]
    image: dict[str, Tensor]
    student: dict[str, Tensor]
    teacher: dict[str, Tensor] | None


@dataclass
class SampleInfo:
    """Which samples the B rows of a micro-batch are, and which of them count.

    Attributes:
        tile_id: of each row.
        epoch: (B,) of each row.
        position: (B,) in the epoch.
        weight: (B,) float32; 0 for rows that only pad the micro-batch, and for those whose tile is
            damaged.
        damage: one record (tile, shard, cell, reason) per row whose tile is damaged.
    """

    tile_id: list[str]
    epoch: NDArray[np.int64]
    position: NDArray[np.int64]
    weight: Tensor
    damage: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tile_id)

    def counted(self) -> Iterator[tuple[int, str, int, int]]:
        """Row, tile, epoch and position of the samples that count."""
        rows = zip(self.tile_id, self.epoch.tolist(), self.position.tolist(), strict=True)
        for row, (weight, sample) in enumerate(zip(self.weight.tolist(), rows, strict=True)):
            if weight:
                yield row, *sample


class HostBatch(Protocol):
    """A micro-batch as the stream hands it over: `Batch`, or tiles that are still to be cropped.

    Attributes:
        samples: of its rows, on the CPU.
    """

    samples: SampleInfo

    def to(self, device: torch.device | str) -> Batch:
        """The batch on the device that trains on it."""
        ...


@dataclass
class Batch:
    """One micro-batch of one rank, B rows.

    Attributes:
        global_crops: crops that teacher and student see.
        local_crops: crops that only the student sees; None where none are configured.
        drop_path_key: (V, B) int64, the global crops first.
        high_frequency: (B,) bool, the tile's class is a high-frequency class.
        samples: of the rows; their weights lie where the batch does.
    """

    global_crops: Crops
    local_crops: Crops | None
    drop_path_key: Tensor
    high_frequency: Tensor
    samples: SampleInfo

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on a device; copies from pinned memory do not block."""
        moved: Batch = _move(self, torch.device(device))
        return moved


def normalise(pixels: Tensor, mean: Tensor, std: Tensor, modality: str) -> Tensor:
    """Storage integers to model input: (physical value - mean) / std, nodata exactly 0.

    Args:
        pixels: (n, C, H, W) storage integers.
        mean: (C,) in physical units (dB, reflectance), float32.
        std: (C,) likewise.
        modality: key of `MODALITIES`.

    Returns:
        (n, C, H, W) float32 on the device of `pixels`.
    """
    sensor = MODALITIES[modality]
    values = pixels.to(torch.float32)
    missing = values == sensor.nodata
    values = values.mul_(sensor.scale).sub_(mean[:, None, None]).div_(std[:, None, None])
    return values.masked_fill_(missing, 0.0)


def pin(shape: tuple[int, ...], dtype: str) -> Tensor:
    """Uninitialised memory for pixels of a batch.

    Pinned where there is a GPU, which lets the copy to it run beside the computation. Elsewhere
    NumPy's, which asks for huge pages: small ones cost as much as the copy into them.
    """
    if torch.cuda.is_available():
        return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)
    return torch.from_numpy(np.empty(shape, dtype))


def assemble(
    views: Views,
    parts: Sequence[BatchRows],
    *,
    high_frequency: NDArray[np.bool_],
    samples: SampleInfo,
) -> Batch:
    """Gathers the crops of B samples into a batch.

    The crops of a single part are not copied, unless to pinned memory: the batch is pieces of
    its buffer, and must not be written to.

    Args:
        views: of the B samples.
        parts: of the B samples, in order.
        high_frequency: (B,).
        samples: of the B rows.
    """
    n_global = views.teacher.shape[1]
    n_views = len(views.sizes)
    pieces = _Pieces(views, parts)
    return Batch(
        global_crops=_gather(views, pieces, range(n_global), views.teacher),
        local_crops=(
            _gather(views, pieces, range(n_global, n_views), None) if n_views > n_global else None
        ),
        drop_path_key=torch.from_numpy(np.ascontiguousarray(views.drop_path_key.T)),
        high_frequency=torch.from_numpy(high_frequency),
        samples=samples,
    )


class _Pieces:
    """Finds the crops of B samples in the buffers of their parts."""

    def __init__(self, views: Views, parts: Sequence[BatchRows]) -> None:
        bounds = np.cumsum([0, *(part.rows for part in parts)])
        self._parts = parts
        self._part = np.repeat(np.arange(len(parts)), np.diff(bounds))
        self._ends = np.concatenate(
            [views.rows(*pair).ends for pair in itertools.pairwise(bounds.tolist())]
        )

    def take(
        self,
        crop: NDArray[np.int64],
        sample: NDArray[np.int64],
        m: int,
        shape: tuple[int, ...],
        dtype: str,
    ) -> Tensor:
        """(n, C, S, S) the crops (crop, sample) of one modality, all of a size, in batch order."""
        count, length = len(crop), math.prod(shape[1:])
        ends = self._ends[sample, crop, m].tolist()
        if len(self._parts) == 1 and not torch.cuda.is_available():
            stop = ends[-1] if count else 0
            piece = self._parts[0].pixels[stop - count * length : stop]
            return torch.from_numpy(piece.view(dtype).reshape(shape))
        pixels = pin(shape, dtype)
        flat = pixels.numpy().view(np.uint16).reshape(count, length)
        for i, (part, end) in enumerate(zip(self._part[sample].tolist(), ends, strict=True)):
            flat[i] = self._parts[part].pixels[end - length : end]
        return pixels


def _gather(
    views: Views, pieces: _Pieces, crops: range, teacher: NDArray[np.bool_] | None
) -> Crops:
    batch = len(views.box)
    side = int(views.sizes[crops.start])
    gathered = Crops(batch * len(crops), {}, {}, {}, None if teacher is None else {})
    for m, name in enumerate(views.modalities):
        modality = MODALITIES[name]
        crop, sample = np.nonzero(views.drawn[:, crops.start : crops.stop, m].T)
        shape = (len(crop), modality.channels, side, side)
        gathered.pixels[name] = pieces.take(crops.start + crop, sample, m, shape, modality.dtype)
        gathered.image[name] = torch.from_numpy(crop * batch + sample)
        student = views.student[sample, crops.start + crop, m]
        gathered.student[name] = torch.from_numpy(student)
        if teacher is not None and gathered.teacher is not None:
            gathered.teacher[name] = torch.from_numpy(teacher[sample, crop, m])
    return gathered


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Crops):
        return replace(value, pixels=_move(value.pixels, device))
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: _move(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **moved)
    return value

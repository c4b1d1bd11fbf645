"""Contestants on torch's DataLoader: our shards, GeoTIFFs, and a float stack as TorchGeo makes it.

Workers make whole batches, collated there: of what DataLoader offers, that hands over least.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from harness.workload import ENDLESS, Workload, rate
from terrafm.data.samples.batch import HostBatch
from terrafm.data.samples.builder import BatchRows
from terrafm.data.samples.crops import Views
from terrafm.data.shards.manifest import CellGroup
from terrafm.modalities import MODALITIES

_PREFETCH = 2


class ShardBatches(Dataset[Any]):
    """Item i is the batch of step i, read from our shards; opened in the worker."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def __getitem__(self, step: int) -> HostBatch:
        builder = self.work.builder
        rows = builder.instructions(step, step + 1)
        return builder.batch(rows, builder.samples.make(rows))


class GeotiffBatches(ShardBatches):
    """The same batches from GeoTIFFs: bands of drawn modalities, the same crops."""

    def __getitem__(self, step: int) -> HostBatch:
        builder = self.work.builder
        cropper = builder.samples.cropper
        rows = builder.instructions(step, step + 1)
        views = builder.samples.views(rows)
        crops = np.empty(views.pixels, np.uint16)
        for row, tile_id in enumerate(rows["tile_id"].to_pylist()):
            pixels = {
                group.name: self._stored(tile_id, group)
                for group in cropper.groups
                if _drawn(views, row, group.modality)
            }
            cropper.crop(pixels, views, row, crops)
        return builder.batch(rows, [BatchRows(len(views.box), crops)])

    def _stored(self, tile_id: str, group: CellGroup) -> NDArray[Any]:
        folder = f"{self.work.geotiffs}/{tile_id}/{group.modality}"
        planes = np.empty(group.shape, np.float32 if group.modality == "s1" else np.uint16)
        for plane, band in zip(planes, group.bands, strict=True):
            with rasterio.open(f"{folder}/{band}.tif") as file:
                file.read(1, out=plane)
        return _hundredths_of_db(planes) if group.modality == "s1" else planes


class FloatStacks(ShardBatches):
    """All bands of a drawn modality resampled to 10 m as float32, then cropped by torch.

    Bilinear with antialiasing, as torchvision and TorchGeo's transforms do it.
    """

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        builder = self.work.builder
        rows = builder.instructions(step, step + 1)
        views = builder.samples.views(rows)
        crops: dict[str, list[torch.Tensor]] = {}
        for row, tile_id in enumerate(rows["tile_id"].to_pylist()):
            for number, modality in enumerate(views.modalities):
                if not _drawn(views, row, modality):
                    continue
                stack = torch.from_numpy(self._stack(tile_id, modality))
                for view in np.flatnonzero(views.drawn[row, :, number]).tolist():
                    name = f"{modality}_{views.sizes[view]}"
                    crops.setdefault(name, []).append(self._crop(stack, views, row, view))
        return {name: torch.stack(images) for name, images in crops.items()}

    def _stack(self, tile_id: str, modality: str) -> NDArray[np.float32]:
        side = self.work.dataset.tile_size
        bands = MODALITIES[modality].bands
        stack = np.empty((len(bands), side, side), np.float32)
        for plane, band in zip(stack, bands, strict=True):
            with rasterio.open(f"{self.work.geotiffs}/{tile_id}/{modality}/{band}.tif") as file:
                file.read(1, out=plane, resampling=Resampling.bilinear)
        if modality == "s1":
            np.log10(np.maximum(stack, 1e-5, out=stack), out=stack)
        return stack

    def _crop(self, stack: torch.Tensor, views: Views, row: int, view: int) -> torch.Tensor:
        cropper = self.work.builder.samples.cropper
        scale = cropper.unit // self.work.dataset.gsd
        top, left, height, width = (views.box[row, view] * scale).tolist()
        window = stack[None, :, top : top + height, left : left + width]
        size = int(views.sizes[view])
        image = interpolate(window, (size, size), mode="bilinear", antialias=True)[0]
        if views.flip[row, view]:
            image = image.flip(-1)
        return torch.rot90(image, -int(views.turns[row, view]), (-2, -1))


def shards(work: Workload) -> dict[str, Any]:
    """DataLoader on our shards."""
    return _run(ShardBatches(work), work)


def geotiffs(work: Workload) -> dict[str, Any]:
    """DataLoader on GeoTIFFs, our crops."""
    return _run(GeotiffBatches(work), work)


def float_stack(work: Workload) -> dict[str, Any]:
    """DataLoader on GeoTIFFs, a 10 m float stack and torch's crops."""
    return _run(FloatStacks(work), work)


def _run(batches: ShardBatches, work: Workload) -> dict[str, Any]:
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(ENDLESS),
        num_workers=work.workers,
        prefetch_factor=_PREFETCH,
        multiprocessing_context="spawn",
    )
    return rate(_sizes(loader, work), work)


def _sizes(loader: "DataLoader[Any]", work: Workload) -> Iterator[int]:
    for _ in loader:
        yield work.layout.rows_per_rank


def _drawn(views: Views, row: int, modality: str) -> bool:
    return bool(views.drawn[row, :, views.modalities.index(modality)].any())


def _hundredths_of_db(power: NDArray[np.float32]) -> NDArray[np.int16]:
    np.log10(np.maximum(power, 1e-5, out=power), out=power)
    power *= 1000
    return np.rint(power, out=power).astype(np.int16)

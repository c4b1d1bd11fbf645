"""Patch embeddings as rasters: a band per dimension, a pixel per patch.

A tile of a dataset is a file. A GeoTIFF's windows become one mosaic on one grid, whose patches
are each taken unchanged from the window in which they lie farthest from the edge: neighbours share
their overlap half and half, nothing is blended. Windows are embedded in parts by many workers, so
that their patches wait in `blocks/` until all parts are done.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import safetensors.numpy
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional

from terrafm.embed.dense_files import BLOCK, DenseStyle, describe, encoded, profile
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.quantisation import Range, Scales
from terrafm.embed.schema import part_name
from terrafm.embed.source import Affine, Place
from terrafm.embed.stac import RasterFacts
from terrafm.models.patch_embed import PATCH_SIZE
from terrafm.ray.parts import Part, Work
from terrafm.storage import join, read_bytes, write_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

BLOCKS = "blocks"
_LEAST_DATA = 0.25


def masked_patches(patches: Tensor, pixels: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Patch maps with NaN where less than a quarter of a patch has data, in every modality.

    Resampling smears data over the edge of what has none, by up to two pixels.

    Args:
        patches: (B, D, h, w).
        pixels: modality -> (B, C, 16 h, 16 w) normalised, 0 where there is no data.

    Returns:
        (B, D, h, w) on the CPU.
    """
    seen = torch.zeros(len(patches), 1, *patches.shape[2:], dtype=torch.bool, device=patches.device)
    for x in pixels.values():
        share = functional.avg_pool2d((x != 0).any(1, keepdim=True).float(), PATCH_SIZE)
        seen |= share >= _LEAST_DATA
    masked = patches.float().masked_fill(~seen, float("nan"))
    return np.asarray(masked.cpu().numpy(), np.float32)


def patch_transform(place: Place, patches: int) -> rasterio.Affine:
    """The grid of a square tile's patches: its own corner, and so many of them on a side."""
    return _coarser(place.transform, place.shape[1] / patches, place.shape[0] / patches)


def write_tile(output: str, place: Place, patches: NDArray[np.float32], style: DenseStyle) -> None:
    """Writes the patch embeddings (D, h, w) of a tile."""
    tags = {"TILE_ID": place.tile_id}
    scales = _scales([patches]) if style.is_int8 else None
    shape = profile(
        patches.shape, place.crs, patch_transform(place, patches.shape[-1]), style.is_int8
    )
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tif"
        with rasterio.open(plain, "w", **shape) as file:
            file.write(encoded(patches, scales))
            describe(file, {**style.tags, **tags}, scales)
        style.finish(plain, output, place.tile_id, RasterFacts(place.times, scales), tags)


def owned_block(
    source: GeoTiffWindows, row: int, patches: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the mosaic takes of a window's patch map (D, h, w)."""
    _, *corner = source.corner(row)
    shape = source.files[source.corner(row)[0]].shape
    cut = [slice(None)]
    for at, length in zip(corner, shape, strict=True):
        first, stop = source.windows.owned(length)[at]
        start = source.windows.starts(length)[at] // source.windows.step
        cut.append(slice(first - start, stop - start))
    return np.ascontiguousarray(patches[tuple(cut)])


def write_blocks(output: str, part: Part, blocks: Mapping[int, NDArray[np.float32]]) -> None:
    """Keeps the blocks of a part's windows, by row, until the mosaics are made."""
    content = safetensors.numpy.save({str(row): block for row, block in blocks.items()})
    write_bytes(join(output, BLOCKS, f"{part_name(part.number)}.safetensors"), content)


@dataclass(frozen=True)
class OpenMosaicWork:
    """Makes the mosaics of files; a part is a range of files.

    Attributes:
        source: the files.
        output: URI of the folder.
        dim: bands.
        rows_per_part: of the parts whose blocks lie there.
        style: how they are written.
    """

    source: GeoTiffWindows
    output: str
    dim: int
    rows_per_part: int
    style: DenseStyle

    def __call__(self, device: str) -> Work:
        """Nothing is opened before."""
        return self._write

    def _write(self, part: Part) -> None:
        for number in range(part.first, part.stop):
            uri = self.style.uri(self.output, self.source.files[number].name)
            # Files appear whole: an earlier command made it.
            if not self.style.exists(uri):
                self._write_one(number)

    def _write_one(self, number: int) -> None:
        file, windows = self.source.files[number], self.source.windows
        height, width = (-(-length // windows.step) for length in file.shape)
        transform = _coarser(file.transform, windows.step, windows.step)
        is_int8 = self.style.is_int8
        shape = profile((self.dim, height, width), file.crs, transform, is_int8)
        scales = _scales(block for _, block in self._blocks(number)) if is_int8 else None
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.tif"
            with rasterio.open(
                plain, "w", tiled=True, blockxsize=BLOCK, blockysize=BLOCK, SPARSE_OK=True,
                BIGTIFF="IF_SAFER", **shape,
            ) as mosaic:  # fmt: skip
                for window, block in self._blocks(number):
                    mosaic.write(encoded(block, scales), window=window)
                describe(mosaic, self.style.tags, scales)
            times = {} if file.time is None else {self.source.modalities[0]: file.time}
            self.style.finish(plain, self.output, file.name, RasterFacts(times, scales), {})

    def _blocks(self, number: int) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        source, shape = self.source, self.source.files[number].shape
        rows, columns = (source.windows.owned(length) for length in shape)
        first, stop = source.first_rows[number], source.first_rows[number + 1]
        for part in range(first // self.rows_per_part, -(-stop // self.rows_per_part)):
            name = f"{part_name(part)}.safetensors"
            blocks = safetensors.numpy.load(
                read_bytes(join(self.output, BLOCKS, name), WHOLE_FILE_BYTES)
            )
            for row in sorted(int(key) for key in blocks):
                if first <= row < stop:
                    _, at_row, at_column = source.corner(row)
                    (top, bottom), (left, right) = rows[at_row], columns[at_column]
                    if bottom > top and right > left:
                        yield Window(left, top, right - left, bottom - top), blocks[str(row)]


def _coarser(transform: Affine, across: float, down: float) -> rasterio.Affine:
    """The same grid with pixels so many times as wide and as high."""
    a, b, c, d, e, f = transform
    return rasterio.Affine(a * across, b * down, c, d * across, e * down, f)


def _scales(blocks: Iterable[NDArray[np.float32]]) -> Scales:
    """Scales that cover the numbers of blocks (D, h, w)."""
    ranges = [Range.of(block.reshape(len(block), -1).T) for block in blocks if block.size]
    return Scales.over(Range.joined(ranges))

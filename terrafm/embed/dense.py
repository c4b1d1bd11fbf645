"""Patch embeddings as cloud-optimised GeoTIFFs: a band per dimension, a pixel per patch.

A tile of a dataset is a file. A GeoTIFF's windows become one mosaic on one grid, whose patches
are each taken unchanged from the window in which they lie farthest from the edge: neighbours share
their overlap half and half, nothing is blended. Windows are embedded in parts by many workers, so
that their patches wait in `blocks/` until all parts are done.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import safetensors.numpy
import torch
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional

from terrafm.data.shards.crs import raster_crs
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.schema import DENSE, part_name
from terrafm.embed.source import Affine, Place
from terrafm.models.patch_embed import PATCH_SIZE
from terrafm.ray.parts import Part, Work
from terrafm.storage import exists, is_local, join, read_bytes, resolve, upload, write_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

BLOCKS = "blocks"
_LEAST_DATA = 0.25
# All bands of a pixel lie together: a block of 128 x 128 is 50 MB of terrafm_base already.
_BLOCK = 128
_COG = {
    "driver": "COG",
    "BLOCKSIZE": _BLOCK,
    "COMPRESS": "DEFLATE",
    "PREDICTOR": "YES",
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
}


def dense_uri(output: str, name: str) -> str:
    """Where the patch embeddings of a tile or file lie."""
    return join(output, DENSE, f"{name}.tif")


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


def write_tile(
    output: str, place: Place, patches: NDArray[np.float32], tags: Mapping[str, str]
) -> None:
    """Writes the patch embeddings (D, h, w) of a tile."""
    profile = _profile(patches.shape, place.crs, patch_transform(place, patches.shape[-1]))
    with MemoryFile() as plain, MemoryFile() as optimised:
        with plain.open(driver="GTiff", **profile) as file:
            file.write(patches)
            file.update_tags(**tags)
        rasterio.shutil.copy(plain.name, optimised.name, **_COG)
        write_bytes(dense_uri(output, place.tile_id), bytes(optimised.getbuffer()))


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
        tags: of every mosaic.
    """

    source: GeoTiffWindows
    output: str
    dim: int
    rows_per_part: int
    tags: dict[str, str]

    def __call__(self, device: str) -> Work:
        """Nothing is opened before."""
        return self._write

    def _write(self, part: Part) -> None:
        for number in range(part.first, part.stop):
            uri = dense_uri(self.output, self.source.files[number].name)
            # Files appear whole: an earlier command made it.
            if not exists(uri):
                self._write_one(number, uri)

    def _write_one(self, number: int, uri: str) -> None:
        file, windows = self.source.files[number], self.source.windows
        height, width = (-(-length // windows.step) for length in file.shape)
        transform = _coarser(file.transform, windows.step, windows.step)
        profile = _profile((self.dim, height, width), file.crs, transform)
        with tempfile.TemporaryDirectory() as folder:
            plain, optimised = Path(folder) / "plain.tif", Path(folder) / "mosaic.tif"
            with rasterio.open(
                plain, "w", driver="GTiff", tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK,
                SPARSE_OK=True, BIGTIFF="IF_SAFER", **profile,
            ) as mosaic:  # fmt: skip
                for window, block in self._blocks(number):
                    mosaic.write(block, window=window)
                mosaic.update_tags(**self.tags)
            rasterio.shutil.copy(plain, optimised, **_COG)
            _put(optimised, uri)

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


def _profile(shape: tuple[int, ...], crs: str, transform: Any) -> dict[str, Any]:
    dim, height, width = shape
    return {
        "count": dim,
        "height": height,
        "width": width,
        "dtype": "float32",
        "crs": raster_crs(crs),
        "transform": transform,
        "nodata": float("nan"),
        "interleave": "pixel",
    }


def _put(file: Path, uri: str) -> None:
    """Moves a file to a URI, whole or invisible."""
    if not is_local(uri):
        upload(file, uri)
        return
    target = Path(resolve(uri)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place first: the temporary folder may be on another disk.
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        upload(file, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)

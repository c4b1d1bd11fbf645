"""Instruction rows to crops: what a data worker does. Imports no torch, so that one starts fast.

An instruction is a small row: (epoch, position) of a sample, and where its tile's cells lie.
"""

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terrafm.data.cells import CellReader, DamagedTileError, Tile
from terrafm.data.crops import Cropper, Views
from terrafm.errors import TerraFMError
from terrafm.modalities import MODALITIES

# mallopt: parameter numbers of glibc's malloc.h, and the largest threshold that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def _fresh(pixels: int) -> NDArray[np.uint16]:
    return np.empty(pixels, dtype=np.uint16)


@dataclass(frozen=True)
class SampleMaker:
    """Rows of instructions to crops: reads, decodes, crops. Small and picklable.

    Attributes:
        uri: the dataset's folder.
        cropper: cuts the crops; with `data.crop_on` "device" it only says which tiles they need.
    """

    uri: str
    cropper: Cropper

    def views(self, instructions: pa.Table) -> Views:
        """What each row's crops show; pure, so that maker and receiver agree on the layout."""
        columns = []
        for name in self.cropper.modalities:
            lengths = [
                instructions[f"{g.name}.length"].to_numpy() > 0
                for g in self.cropper.groups
                if g.modality == name
            ]
            columns.append(np.all(lengths, axis=0))
        return self.cropper.draw(
            instructions["epoch"].to_numpy(),
            instructions["position"].to_numpy(),
            np.stack(columns, axis=1),
        )

    def ends(self, views: Views) -> NDArray[np.int64]:
        """(n,) length of each row's buffer, in pixels."""
        if self.whole_tiles:
            return self.cropper.tile_ends(views)[:, -1]
        return views.ends[:, -1, -1]

    @property
    def whole_tiles(self) -> bool:
        """Whether a buffer holds tiles, to be cropped on the device, in place of crops."""
        return self.cropper.config.crop_on == "device"

    def make(
        self,
        instructions: pa.Table,
        allocate: Callable[[int], NDArray[np.uint16]] = _fresh,
        damaged: dict[int, DamagedTileError] | None = None,
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """The crops of all rows in one buffer, and the (n + 1,) bounds of each row's part.

        Where crops are cut on the device, the tiles that they need take their place.

        Args:
            instructions: one row per sample.
            allocate: number of pixels -> the buffer to fill.
            damaged: takes the rows left out because their tile is damaged, under
                `data.on_damage: quarantine`; their pixels are nodata.

        Raises:
            TerraFMError: a cell cannot be read; names shard and tile.
        """
        reader = CellReader(self.uri, self.cropper.groups, self.cropper.config)
        views = self.views(instructions)
        bounds = np.concatenate([[0], np.cumsum(self.ends(views))])
        out = allocate(int(bounds[-1]))
        needed = self.cropper.needed(views)
        wanted = [
            [group.name for group, here in zip(self.cropper.groups, row, strict=True) if here]
            for row in needed
        ]
        for row, pixels in enumerate(reader.read_ahead(instructions, wanted)):
            if isinstance(pixels, DamagedTileError):
                if damaged is None or self.cropper.config.on_damage == "fatal":
                    raise pixels
                damaged[row] = pixels
                pixels = self._nodata(wanted[row])
            target = out[bounds[row] : bounds[row + 1]]
            if self.whole_tiles:
                flat = [pixels[name].view(np.uint16).ravel() for name in wanted[row]]
                np.concatenate(flat, out=target)
            else:
                self.cropper.crop(pixels, views, row, target)
        return out, bounds

    def _nodata(self, names: list[str]) -> Tile:
        return {
            group.name: np.full(group.shape, MODALITIES[group.modality].nodata, group.dtype)
            for group in self.cropper.groups
            if group.name in names
        }


def make_block(instructions: pa.Table, samples: SampleMaker) -> pa.Table:
    """A block of instructions to a block of crops, one flat buffer per row.

    The block lies in a buffer of the worker that its next block overwrites: Ray copies a block
    into the object store before the task ends. An unreadable cell comes back as data (column
    "error"), so that it reaches the rank in its order and in its own words, and so does a tile
    left out (column "damage").
    """
    _keep_freed_memory()
    damaged: dict[int, DamagedTileError] = {}
    try:
        crops, bounds = samples.make(instructions, _WORKER_BUFFER.take, damaged)
    except TerraFMError as error:
        columns = [pa.array([None], pa.large_binary()), pa.array([str(error)])]
        return pa.table(columns, names=["crops", "error"])
    damage = [
        json.dumps(damaged[r].record()) if r in damaged else None for r in range(len(bounds) - 1)
    ]
    buffers = [None, pa.py_buffer(2 * bounds), pa.py_buffer(crops)]
    rows = pa.Array.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)
    columns = [rows, pa.nulls(len(rows), pa.string()), pa.array(damage, pa.string())]
    return pa.table(columns, names=["crops", "error", "damage"])


def open_block(block: pa.Table) -> list[NDArray[np.uint16]]:
    """Each row's flat buffer, without a copy.

    Raises:
        TerraFMError: the block says that a cell could not be read.
    """
    if block.num_rows and (message := block["error"][0].as_py()) is not None:
        raise TerraFMError(message)
    return [np.frombuffer(row.as_buffer(), dtype=np.uint16) for row in block["crops"]]


def block_damage(block: pa.Table) -> list[dict[str, str] | None]:
    """For each row what is wrong with its tile, where it was left out."""
    return [text and json.loads(text) for text in block["damage"].to_pylist()]


class _Buffer:
    """Memory that grows to the largest block and stays: fresh pages cost more than the copies."""

    def __init__(self) -> None:
        self._pixels = _fresh(0)

    def take(self, pixels: int) -> NDArray[np.uint16]:
        if len(self._pixels) < pixels:
            self._pixels = _fresh(pixels)
        return self._pixels[:pixels]


_WORKER_BUFFER = _Buffer()


@cache
def _keep_freed_memory() -> None:
    """Lets this worker's malloc reuse memory instead of returning it after every tile.

    A tile passes through some 30 MB of buffers of a few MB each. By default glibc maps each of
    them afresh, and the page faults cost a third of the time of a tile.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)

"""Instruction rows to crops: what a data worker does. Imports no torch, so that one starts fast.

An instruction is a small row: (epoch, position) of a sample, and where its tile's cells lie.
"""

import ctypes
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terrafm.data.samples.crops import Cropper, Views
from terrafm.data.shards.cells import CellReader, DamagedTileError, Tile
from terrafm.errors import TerraFMError
from terrafm.modalities import MODALITIES

OTHER_DATE = "other_date."
"""What the columns of an instruction begin with that locate the tile of another date."""

# mallopt: parameter numbers of glibc's malloc.h, and the largest threshold that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def _fresh(pixels: int) -> NDArray[np.uint16]:
    return np.empty(pixels, dtype=np.uint16)


@dataclass(frozen=True)
class BatchRows:
    """Consecutive rows of one micro-batch.

    Attributes:
        rows: number of samples.
        pixels: their crops, where `Views.ends` of these rows says; or their tiles, where
            `Cropper.tile_ends` says.
        damage: row -> what is wrong with its tile, where it was left out.
    """

    rows: int
    pixels: NDArray[np.uint16]
    damage: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleBuilder:
    """Rows of instructions to crops: reads, decodes, crops. Small and picklable.

    Attributes:
        uri: the dataset's folder.
        cropper: cuts the crops; with `data.crop_on` "device" it only says which tiles they need.
    """

    uri: str
    cropper: Cropper

    def views(self, instructions: pa.Table) -> Views:
        """What each row's crops show; pure, so that builder and receiver agree on the layout."""
        others = self._other_dates(instructions)
        elsewhen = None
        if others is not None:
            # A place of one date has itself in its other's place.
            apart = pc.not_equal(others["tile_id"], instructions["tile_id"]).to_numpy()
            elsewhen = self._available(others) & apart[:, None]
        return self.cropper.draw(
            instructions["epoch"].to_numpy(),
            instructions["position"].to_numpy(),
            self._available(instructions),
            elsewhen,
        )

    def _available(self, locations: pa.Table) -> NDArray[np.bool_]:
        """(n, M) modalities that each row's tile has."""
        columns = []
        for name in self.cropper.modalities:
            lengths = [
                locations[f"{g.name}.length"].to_numpy() > 0
                for g in self.cropper.groups
                if g.modality == name
            ]
            columns.append(np.all(lengths, axis=0))
        return np.stack(columns, axis=1)

    def _other_dates(self, instructions: pa.Table) -> pa.Table | None:
        """Locations of the tiles of other dates; None where the run has none."""
        names = [n for n in instructions.column_names if n.startswith(OTHER_DATE)]
        if not names:
            return None
        return instructions.select(names).rename_columns(
            [n.removeprefix(OTHER_DATE) for n in names]
        )

    def pixels(self, views: Views) -> int:
        """Length of the buffer of some rows."""
        if self.whole_tiles:
            return int(self.cropper.tile_ends(views).max(initial=0))
        return views.pixels

    @property
    def whole_tiles(self) -> bool:
        """Whether a buffer holds tiles, to be cropped on the device, in place of crops."""
        return self.cropper.config.crop_on == "device"

    def make(
        self,
        instructions: pa.Table,
        allocate: Callable[[int], NDArray[np.uint16]] = _fresh,
    ) -> list[BatchRows]:
        """The crops of all rows, a part for each micro-batch that the rows belong to.

        Where crops are cut on the device, the tiles that they need take their place. Under
        `data.on_damage: quarantine` a damaged tile's pixels are nodata.

        Args:
            instructions: one row per sample.
            allocate: number of pixels -> the buffer of all parts.

        Raises:
            TerraFMError: a cell cannot be read; names shard and tile.
        """
        reader = CellReader(self.uri, self.cropper.groups, self.cropper.config)
        views = self.views(instructions)
        wanted = self._wanted(views)
        tiles = reader.read_ahead(instructions, wanted)
        others = self._other_dates(instructions)
        wanted_others = self._wanted(views, other_date=True)
        elsewhen = None if others is None else reader.read_ahead(others, wanted_others)
        stretches = [views.rows(*bounds) for bounds in _stretches(instructions)]
        bounds = np.cumsum([0, *(self.pixels(stretch) for stretch in stretches)])
        out = allocate(int(bounds[-1]))
        parts, first = [], 0
        for stretch, start, stop in zip(stretches, bounds, bounds[1:], strict=False):
            part = BatchRows(len(stretch.box), out[start:stop], {})
            for row, tile in enumerate(itertools.islice(tiles, part.rows)):
                pixels = self._checked(tile, wanted[first + row], row, part.damage)
                self._fill(part.pixels, pixels, stretch, row)
                if elsewhen is not None:
                    other = next(elsewhen)
                    pixels = self._checked(other, wanted_others[first + row], row, part.damage)
                    self.cropper.crop(pixels, stretch, row, part.pixels, other_date=True)
            parts.append(part)
            first += part.rows
        return parts

    def _wanted(self, views: Views, *, other_date: bool = False) -> list[list[str]]:
        """Per row the cell groups that its crops of one date show."""
        return [
            [group.name for group, here in zip(self.cropper.groups, row, strict=True) if here]
            for row in self.cropper.needed(views, other_date=other_date)
        ]

    def _checked(
        self,
        tile: Tile | DamagedTileError,
        names: list[str],
        row: int,
        damage: dict[int, dict[str, str]],
    ) -> Tile:
        if not isinstance(tile, DamagedTileError):
            return tile
        if self.cropper.config.on_damage == "fatal":
            raise tile
        damage[row] = tile.record()
        return self._nodata(names)

    def _fill(self, out: NDArray[np.uint16], tile: Tile, views: Views, row: int) -> None:
        if not self.whole_tiles:
            self.cropper.crop(tile, views, row, out)
            return
        needed, ends = self.cropper.needed(views)[row], self.cropper.tile_ends(views)[row]
        for group, here, end in zip(self.cropper.groups, needed, ends.tolist(), strict=True):
            if here:
                pixels = tile[group.name].view(np.uint16).ravel()
                out[end - len(pixels) : end] = pixels

    def _nodata(self, names: list[str]) -> Tile:
        return {
            group.name: np.full(group.shape, MODALITIES[group.modality].nodata, group.dtype)
            for group in self.cropper.groups
            if group.name in names
        }


class DataWorker:
    """What a data worker of the stream is, in a module that imports no torch."""

    def __init__(self, samples: SampleBuilder, standby: bool = False) -> None:
        self._samples = samples
        self._standby = standby

    def __call__(self, instructions: pa.Table) -> pa.Table:
        """A block of instructions to a block of parts."""
        if self._standby:
            self._standby = False
            # Crops are made without Ray as well.
            from terrafm.ray.standby import start_standby

            start_standby()
        return make_block(instructions, self._samples)


def make_block(instructions: pa.Table, samples: SampleBuilder) -> pa.Table:
    """A block of instructions to a block of parts, one row and one flat buffer for each.

    The block lies in a buffer of the worker that its next block overwrites: Ray copies a block
    into the object store before the task ends. An unreadable cell comes back as data (column
    "error"), so that it reaches the rank in its order and in its own words, and so does what is
    wrong with tiles that are left out (column "damage").
    """
    _keep_freed_memory()
    try:
        parts = samples.make(instructions, _WORKER_BUFFER.take)
    except TerraFMError as error:
        return pa.table(
            {
                "pixels": pa.array([None], pa.large_binary()),
                "rows": [0],
                "damage": [""],
                "error": [str(error)],
            }
        )
    bounds = 2 * np.cumsum([0, *(len(part.pixels) for part in parts)])
    pixels = _WORKER_BUFFER.take(int(bounds[-1]) // 2)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(pixels)]
    return pa.table(
        {
            "pixels": pa.Array.from_buffers(pa.large_binary(), len(parts), buffers),
            "rows": [part.rows for part in parts],
            "damage": [json.dumps(part.damage) for part in parts],
            "error": pa.nulls(len(parts), pa.string()),
        }
    )


def open_block(block: pa.Table) -> list[BatchRows]:
    """The parts of a block; their pixels are not copied.

    Raises:
        TerraFMError: the block says that a cell could not be read.
    """
    if block.num_rows and (message := block["error"][0].as_py()) is not None:
        raise TerraFMError(message)
    parts = []
    for batch in block.to_batches():
        # Through its buffers: a scalar of Arrow's would be a copy.
        _, offsets, values = batch["pixels"].buffers()
        first = batch["pixels"].offset
        bounds = np.frombuffer(offsets, np.int64)[first : first + batch.num_rows + 1] // 2
        pixels = np.frombuffer(values, np.uint16, count=bounds[-1])
        for row, (rows, damage) in enumerate(
            zip(batch["rows"].to_pylist(), batch["damage"].to_pylist(), strict=True)
        ):
            records = {int(r): record for r, record in json.loads(damage).items()}
            parts.append(BatchRows(rows, pixels[bounds[row] : bounds[row + 1]], records))
    return parts


def _stretches(instructions: pa.Table) -> list[tuple[int, int]]:
    """Bounds of the rows that belong to one micro-batch."""
    cuts = 1 + np.flatnonzero(np.diff(instructions["batch"].to_numpy()))
    edges = [0, *cuts.tolist(), instructions.num_rows]
    return [pair for pair in itertools.pairwise(edges) if pair[0] < pair[1]]


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

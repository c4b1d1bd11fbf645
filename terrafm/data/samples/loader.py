"""Micro-batches of a training rank, made in this process: the reference for the stream.

Rank r of W takes a contiguous stretch of each global batch. What a rank has to make is a list of
rows, each an (epoch, position); rows that only pad a micro-batch repeat a real one with weight 0,
so that all ranks see equal shapes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from terrafm.config import DataConfig
from terrafm.data.samples.batch import HostBatch, SampleInfo, assemble
from terrafm.data.samples.builder import OTHER_DATE, BatchRows, SampleBuilder
from terrafm.data.samples.crops import Cropper
from terrafm.data.samples.dates import OtherDates
from terrafm.data.samples.device_crops import assemble_tiles
from terrafm.data.samples.plan import Plan
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError


@dataclass(frozen=True)
class RankLayout:
    """How a rank's share of a global batch is cut into micro-batches.

    Attributes:
        global_batch: samples of one step over all ranks (B).
        world_size: ranks (W).
        rank: this one.
        micro_batch: most samples that a rank holds at once.
    """

    global_batch: int
    world_size: int
    rank: int
    micro_batch: int

    @property
    def share(self) -> int:
        """Most real rows of a rank in one step: ceil(B / W)."""
        return -(-self.global_batch // self.world_size)

    @property
    def n_micro(self) -> int:
        """Micro-batches of one step."""
        return -(-self.share // self.micro_batch)

    @property
    def micro_rows(self) -> int:
        """Rows of one micro-batch."""
        return -(-self.share // self.n_micro)

    @property
    def rows_per_rank(self) -> int:
        """Rows of one step, padding included."""
        return self.n_micro * self.micro_rows

    def rows(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One step's rows.

        Returns:
            (rows_per_rank,) index of each row's sample in the endless concatenation of epochs,
            and its weight: 1, or 0 where it only pads.
        """
        number = np.arange(self.rows_per_rank)
        offset = self.rank * self.share + number
        real = (number < self.share) & (offset < self.global_batch)
        offset = np.minimum(offset, self.global_batch - 1)
        return step * self.global_batch + offset, real.astype(np.float32)


class BatchBuilder:
    """Everything a rank needs to turn steps into instructions, and crops into batches.

    Args:
        dataset: an open dataset.
        plan: over all of its tiles.
        config: crops and modality augmentation.
        seed: of the run.
        layout: this rank's share.
        high_frequency: classes that the second center averages over.

    Raises:
        UsageError: the dataset does not fit the plan or the configuration.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        config: DataConfig,
        *,
        seed: int,
        layout: RankLayout,
        high_frequency: Sequence[int],
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.layout = layout
        self.samples = SampleBuilder(dataset.uri, Cropper.for_dataset(dataset, config, seed))
        self._dates = OtherDates(dataset.places, seed) if config.other_date else None
        self._high_frequency = np.isin(dataset.land_cover, list(high_frequency))
        trained = [name in config.modalities for name in dataset.modalities]
        empty = np.flatnonzero(~dataset.available[:, trained].any(axis=1))
        if len(empty):
            raise UsageError(
                f"dataset {dataset.uri}: {len(empty)} tiles, {dataset.tile_ids[empty[0]]} first, "
                f"have none of data.modalities {list(config.modalities)}"
            )

    def instructions(self, start_step: int, stop_step: int) -> pa.Table:
        """One small row per sample of some steps: where its tile lies, and (epoch, position).

        Under `data.other_date` also where a tile of another date lies, in columns "other_date.…".
        """
        steps = [self.layout.rows(step) for step in range(start_step, stop_step)]
        epochs, positions, rows = self.plan.lookup(np.concatenate([s for s, _ in steps]))
        table = self.dataset.locations(rows)
        if self._dates is not None:
            others = self.dataset.locations(self._dates.rows(rows, epochs, positions))
            for name in others.column_names:
                table = table.append_column(f"{OTHER_DATE}{name}", others[name])
        number = np.arange(len(rows))
        for name, column in (
            ("epoch", epochs),
            ("position", positions),
            ("weight", np.concatenate([w for _, w in steps])),
            ("high_frequency", self._high_frequency[rows]),
            ("batch", start_step * self.layout.n_micro + number // self.layout.micro_rows),
        ):
            table = table.append_column(name, pa.array(column))
        return table

    def batch(self, instructions: pa.Table, parts: Sequence[BatchRows]) -> HostBatch:
        """One micro-batch.

        Args:
            instructions: one row per sample.
            parts: of these rows, in order; a damaged row gets weight 0.
        """
        views = self.samples.views(instructions)
        weight = instructions["weight"].to_numpy().copy()
        damage: list[dict[str, str]] = []
        first = 0
        for part in parts:
            weight[[first + row for row in part.damage]] = 0.0
            damage += part.damage.values()
            first += part.rows
        samples = SampleInfo(
            tile_id=instructions["tile_id"].to_pylist(),
            epoch=instructions["epoch"].to_numpy().copy(),
            position=instructions["position"].to_numpy().copy(),
            weight=torch.from_numpy(weight),
            damage=damage,
        )
        high_frequency = instructions["high_frequency"].to_numpy().copy()
        if self.samples.whole_tiles:
            return assemble_tiles(
                self.samples.cropper, views, parts, high_frequency=high_frequency, samples=samples
            )
        return assemble(views, parts, high_frequency=high_frequency, samples=samples)


def make_batches(
    dataset: Dataset,
    plan: Plan,
    config: DataConfig,
    *,
    seed: int,
    layout: RankLayout,
    start_step: int,
    stop_step: int,
    high_frequency: Sequence[int],
) -> Iterator[HostBatch]:
    """The micro-batches of a rank, one after the other, made in this process.

    Args:
        dataset: an open dataset.
        plan: over all of its tiles.
        config: crops and modality augmentation.
        seed: of the run.
        layout: this rank's share.
        start_step: first step.
        stop_step: step after the last one.
        high_frequency: classes that the second center averages over.

    Yields:
        `layout.n_micro` batches per step.

    Raises:
        UsageError: the dataset does not fit the plan or the configuration.
        TerraFMError: a cell cannot be read; names shard and tile.
    """
    builder = BatchBuilder(
        dataset, plan, config, seed=seed, layout=layout, high_frequency=high_frequency
    )
    for step in range(start_step, stop_step):
        instructions = builder.instructions(step, step + 1)
        for micro in range(layout.n_micro):
            rows = instructions.slice(micro * layout.micro_rows, layout.micro_rows)
            yield builder.batch(rows, builder.samples.make(rows))

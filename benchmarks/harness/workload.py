"""What every contestant is given, and how its rate is taken: tiles/s after a warm-up."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from terrafm.config import DataConfig
from terrafm.data.samples.loader import BatchBuilder, RankLayout
from terrafm.data.samples.plan import Plan
from terrafm.data.shards.dataset import Dataset

BATCH = 64
SEED = 0
# More steps than any run takes.
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Workload:
    """Tiles, crops, and how long to measure.

    Attributes:
        name: of the contestant.
        uri: the dataset.
        geotiffs: folder of the same tiles as GeoTIFFs.
        formats: folder of the same tiles in other libraries' formats.
        workers: data processes, or logical CPUs of the stream.
        warm_up: seconds between the first batch and the measurement.
        seconds: of the measurement; without end where `tiles` says when.
        tiles: samples of the measurement, 0 for `seconds`.
        config: settings of `DataConfig` that differ from the defaults.
    """

    name: str
    uri: str
    geotiffs: str = ""
    formats: str = ""
    workers: int = 2
    warm_up: float = 8.0
    seconds: float = 20.0
    tiles: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def data(self) -> DataConfig:
        """Crops and modality augmentation."""
        return DataConfig(**self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The opened dataset."""
        return Dataset.open(self.uri)

    @cached_property
    def plan(self) -> Plan:
        """Over all tiles."""
        exponent = self.data.resample_exponent
        return Plan(self.dataset.land_cover, seed=SEED, exponent=exponent)

    @cached_property
    def layout(self) -> RankLayout:
        """One rank, one micro-batch a step."""
        return RankLayout(global_batch=BATCH, world_size=1, rank=0, micro_batch=BATCH)

    @cached_property
    def builder(self) -> BatchBuilder:
        """Instructions and batches."""
        return BatchBuilder(
            self.dataset, self.plan, self.data, seed=SEED, layout=self.layout, high_frequency=()
        )


def rate(sizes: Iterator[int], work: Workload) -> dict[str, Any]:
    """Takes batches as fast as they come and counts them from the end of the warm-up.

    The warm-up begins with the first batch.

    Args:
        sizes: samples of each batch.
        work: how long.

    Returns:
        "rate" in tiles/s, "first" in seconds until the first batch, "tiles" measured.
    """
    begin = time.perf_counter()
    first = start = last = 0.0
    counted = 0
    for size in sizes:
        last = time.perf_counter()
        first = first or last
        if not start:
            # From the first batch on: how long it takes to come is a figure of its own.
            start = last if last - first >= work.warm_up else 0.0
            continue
        counted += size
        if work.tiles and counted >= work.tiles:
            break
        if not work.tiles and last - start >= work.seconds:
            break
    if not counted:
        raise SystemExit(f"{work.name} gave no batch after its warm-up")
    return {"rate": counted / (last - start), "first": first - begin, "tiles": counted}

"""Contestants of other libraries: each reads our cells in its own format, shuffled as it does.

Decoding and crops are ours, and only modalities that a view has drawn are decoded; batches are
collated in the workers. Local files, two batches ahead per worker.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from harness import codecs
from harness.formats import REPEATS, write
from harness.workload import BATCH, Workload, rate
from terrafm.data.samples.batch import HostBatch
from terrafm.data.samples.builder import BatchRows

_PREFETCH = 2
Sample = tuple[pa.Table, NDArray[np.uint16]]


class Crops:
    """Cells of a tile to a sample, samples to a batch; opened in the worker."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self._taken = 0

    @cached_property
    def _rows(self) -> pa.Table:
        dataset = self.work.dataset
        count = len(dataset)
        table = dataset.locations(range(count))
        table = table.append_column("position", pa.array(np.arange(count)))
        table = table.append_column("weight", pa.array(np.ones(count, np.float32)))
        return table.append_column("high_frequency", pa.array(np.zeros(count, bool)))

    def sample(self, tile: int, cells: Mapping[str, bytes]) -> Sample:
        """Draws the views of the next sample of this worker and cuts its crops."""
        samples = self.work.builder.samples
        self._taken += 1
        epoch = pa.array(np.array([self._taken]))
        row = self._rows.slice(tile, 1).append_column("epoch", epoch)
        views = samples.views(row)
        needed = views.drawn[0].any(axis=0)
        codec = codecs.names()[0]
        pixels = {
            g.name: codecs.decode(codec, cells[g.name], g.shape, g.dtype)
            for g in samples.cropper.groups
            if needed[views.modalities.index(g.modality)]
        }
        buffer = np.empty(views.pixels, np.uint16)
        samples.cropper.crop(pixels, views, 0, buffer)
        return row, buffer

    def collate(self, samples: Sequence[Sample]) -> HostBatch:
        """A batch of samples."""
        rows = pa.concat_tables([row for row, _ in samples]).combine_chunks()
        return self.work.builder.batch(rows, [BatchRows(1, buffer) for _, buffer in samples])


def litdata(work: Workload) -> dict[str, Any]:
    """LitData's StreamingDataset and StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    write("litdata", work.uri, Path(work.formats))
    crops = Crops(work)

    class Tiles(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Sample:
            item = super().__getitem__(index)
            return crops.sample(item["tile"], item)

    loader = StreamingDataLoader(
        Tiles(str(Path(work.formats) / "litdata"), shuffle=True, drop_last=True),
        batch_size=BATCH,
        num_workers=work.workers,
        prefetch_factor=_PREFETCH,
        collate_fn=crops.collate,
        persistent_workers=True,
    )
    return rate(_sizes(loader), work)


def webdataset(work: Workload) -> dict[str, Any]:
    """WebDataset's pipeline and WebLoader."""
    import webdataset as wds

    write("webdataset", work.uri, Path(work.formats))
    crops = Crops(work)

    def sample(item: dict[str, Any]) -> Sample:
        cells = {k.removesuffix(".bin"): v for k, v in item.items() if k.endswith(".bin")}
        return crops.sample(int(item["__key__"]), cells)

    tars = sorted(str(path) for path in (Path(work.formats) / "webdataset").glob("*.tar"))
    pipeline = (
        wds.WebDataset(tars * REPEATS, shardshuffle=100, empty_check=False)
        .shuffle(BATCH)
        .map(sample)
        .batched(BATCH, collation_fn=crops.collate, partial=False)
    )
    loader = wds.WebLoader(
        pipeline, batch_size=None, num_workers=work.workers, prefetch_factor=_PREFETCH
    )
    return rate(_sizes(loader), work)


def mosaicml(work: Workload) -> dict[str, Any]:
    """MosaicML's StreamingDataset in torch's DataLoader, as its documentation does."""
    from streaming import Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    write("mosaicml", work.uri, Path(work.formats))
    clean_stale_shared_memory()
    crops = Crops(work)

    class Tiles(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Sample:
            item = super().__getitem__(index)
            return crops.sample(item["tile"], item)

    stream = Stream(local=str(Path(work.formats) / "mosaicml"), repeat=REPEATS)
    loader: DataLoader[Any] = DataLoader(
        Tiles(streams=[stream], shuffle=True, batch_size=BATCH),
        batch_size=BATCH,
        num_workers=work.workers,
        prefetch_factor=_PREFETCH,
        collate_fn=crops.collate,
        drop_last=True,
        persistent_workers=True,
    )
    return rate(_sizes(loader), work)


def _sizes(loader: Iterable[HostBatch]) -> Iterator[int]:
    while True:
        for batch in loader:
            yield len(batch.samples)

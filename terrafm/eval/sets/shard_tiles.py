"""A dataset of ingest as a labelled set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.eval.labelled import Grid, Image
from terrafm.modalities import MODALITIES


class ShardTiles:
    """A dataset of ingest as a labelled set: the label of a tile is its majority class."""

    def __init__(self, uri: str) -> None:
        """Opens the dataset.

        Raises:
            UsageError: as `Dataset.open`.
        """
        from terrafm.data.shards.dataset import Dataset

        self.uri = uri
        self.dataset = Dataset.open(uri)
        codes, labels = np.unique(self.dataset.land_cover, return_inverse=True)
        self.labels = labels.astype(np.int64)
        legend = self.dataset.legend
        self.classes = tuple(legend.get(int(code), f"class {code}") for code in codes)
        self.names: Sequence[str] = [str(tile) for tile in self.dataset.tile_ids]
        # A tile's id is its cell's with row and column appended.
        cells = [name.rsplit("_", 2)[0] for name in self.names]
        self.groups = np.unique(cells, return_inverse=True)[1].astype(np.int64)
        self.splits: NDArray[np.str_] | None = None
        self.modalities: tuple[str, ...] = tuple(self.dataset.modalities)
        self.bands = {
            name: f"shards, model order {' '.join(MODALITIES[name].bands)}"
            for name in self.modalities
        }

    @property
    def fingerprint(self) -> str:
        """The dataset's own."""
        return self.dataset.fingerprint

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One tile; the bands of each GSD are a grid of their own."""
        arrays = self.dataset.read_tile(row, modalities)
        image: Image = {}
        for group in self.dataset.groups:
            if group.name not in arrays:
                continue
            modality = MODALITIES[group.modality]
            channels = tuple(modality.bands.index(band) for band in group.bands)
            grid = Grid(channels, modality.to_physical(arrays[group.name]))
            image.setdefault(group.modality, []).append(grid)
        return image

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As ingest stored them in the manifest."""
        return self.dataset.statistics

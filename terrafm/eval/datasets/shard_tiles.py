"""A dataset of ingest as a labelled set."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.eval.datasets.labelled import Grid, Image
from terrafm.modalities import MODALITIES


class ShardTiles:
    """A dataset of ingest as a labelled set: the label of a tile is its majority class.

    Opening reads the manifest; ids and labels of all tiles are read when they are asked for.
    """

    def __init__(self, uri: str, fingerprint: str | None = None) -> None:
        """Opens the dataset.

        Args:
            uri: its folder.
            fingerprint: of the version to open; the newest by default.

        Raises:
            UsageError: as `Dataset.open`.
        """
        from terrafm.data.shards.dataset import Dataset

        self.uri = uri
        self.dataset = Dataset.open(uri, fingerprint=fingerprint)
        self.splits: NDArray[np.str_] | None = None
        self.modalities: tuple[str, ...] = tuple(self.dataset.modalities)
        self.bands = {
            name: f"shards, model order {' '.join(MODALITIES[name].bands)}"
            for name in self.modalities
        }

    @cached_property
    def names(self) -> Sequence[str]:
        """(N,) tile ids."""
        return [str(tile) for tile in self.dataset.tile_ids]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) positions in `classes`."""
        return np.searchsorted(self._codes, self.dataset.land_cover).astype(np.int64)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the land covers that occur, in the order of their codes."""
        legend = self.dataset.legend
        return tuple(legend.get(int(code), f"class {code}") for code in self._codes)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """(N,) tiles of one grid cell, at whatever date, share a number."""
        cells = [cell_of(str(place)) for place in self.dataset.places]
        return np.unique(cells, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(N,) tiles of the same ground at several dates share a number."""
        numbers = np.unique(self.dataset.places.astype(str), return_inverse=True)[1]
        return numbers.astype(np.int64)

    def available(self, modality: str) -> NDArray[np.bool_]:
        """(N,) whether a tile has a modality."""
        return self.dataset.available[:, self.modalities.index(modality)]

    def times(self, rows: Sequence[int], modalities: Sequence[str]) -> dict[str, list[str]]:
        """Acquisition times of some tiles by modality, ISO 8601; "" where they are not known."""
        products = [self.dataset.tile(row)["products"] for row in rows]
        return {m: [tile.get(m, {}).get("time", "") for tile in products] for m in modalities}

    @property
    def fingerprint(self) -> str:
        """The dataset's own."""
        return self.dataset.fingerprint

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One tile; the bands of each GSD are a grid of their own."""
        return next(self.read_ahead([row], modalities))

    def read_ahead(self, rows: Sequence[int], modalities: Sequence[str]) -> Iterator[Image]:
        """Some tiles, one after the other; from a store the next ones are under way meanwhile.

        Raises:
            TerraFMError: one cannot be read; names shard and tile.
        """
        wanted = [g.name for g in self.dataset.groups if g.modality in modalities]
        locations = self.dataset.locations(rows)
        for tile in self.dataset.reader.read_ahead(locations, [wanted] * len(rows)):
            if isinstance(tile, Exception):
                raise tile
            yield self._image(tile)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As ingest stored them in the manifest."""
        return self.dataset.statistics

    @cached_property
    def _codes(self) -> NDArray[np.int32]:
        return np.unique(self.dataset.land_cover)

    def _image(self, arrays: dict[str, NDArray[Any]]) -> Image:
        image: Image = {}
        for group in self.dataset.groups:
            if group.name not in arrays:
                continue
            modality = MODALITIES[group.modality]
            channels = tuple(modality.bands.index(band) for band in group.bands)
            grid = Grid(channels, modality.to_physical(arrays[group.name]))
            image.setdefault(group.modality, []).append(grid)
        return image


def cell_of(tile_id: str) -> str:
    """The grid cell of a tile: its id is the cell's with row and column appended."""
    return tile_id.rsplit("_", 2)[0]

"""A folder of embeddings with its index: tiles in, tiles out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terrafm.errors import TerraFMError
from terrafm.search.embeddings import Embeddings
from terrafm.search.index import Index, IndexRecord
from terrafm.search.nearest import Nearest, Neighbour
from terrafm.search.recall import MORE


@dataclass(frozen=True)
class NearestTiles:
    """What was found.

    Attributes:
        neighbours: the most similar first, without the query.
        without_direction: embeddings of the folder that are zero or not finite.
        rows: places in the folder of the query and of the neighbours, where they are known.
    """

    neighbours: list[Neighbour]
    without_direction: int
    rows: list[int] | None


class IndexedFolder:
    """Looks through the index, then compares what it found exactly.

    Args:
        folder: the embeddings.
        record: of their index.

    Raises:
        UsageError: as `Index`.
    """

    def __init__(self, folder: Embeddings, record: IndexRecord) -> None:
        self._folder, self._record = folder, record
        self._index = Index(folder.uri, record)

    def nearest(self, query: str, count: int) -> NearestTiles:
        """The tiles most similar to one.

        Args:
            query: id of the tile.
            count: of neighbours.

        Raises:
            UsageError: there is no such tile.
            TerraFMError: it has no direction, or a file cannot be read.
        """
        own = self._row(query)
        (vector,) = self._folder.rows([own])[1]
        comparable = self._index.prepared
        nearest = Nearest(comparable(vector[None])[0], count + 1)
        found = self._index.search(vector, count + MORE + 1).rows
        ids, vectors = self._folder.rows(found) if found else ([], np.zeros((0, len(vector))))
        nearest.add(ids, comparable(vectors))
        rows = dict(zip(ids, found, strict=True))
        best = [neighbour for neighbour in nearest.best() if neighbour.tile_id != query][:count]
        without = self._record.rows - self._record.indexed
        return NearestTiles(best, without, [own, *(rows[n.tile_id] for n in best)])

    def as_dict(self, built: bool) -> dict[str, Any]:
        """What a result says of the index."""
        record = self._record
        return {
            "built": built,
            "seconds": round(record.seconds, 1),
            "recall": round(record.recall, 4),
            "milliseconds": round(record.milliseconds, 3),
            "lists": record.lists,
            "probes": record.probes,
        }

    def _row(self, tile_id: str) -> int:
        places: Sequence[int] = self._index.row_of(tile_id)
        if places:
            for name, row in zip(self._folder.names(places), places, strict=True):
                if name == tile_id:
                    return row
        # Names the nearest ids.
        self._folder.vector(tile_id)
        raise TerraFMError(
            f"the index of {self._folder.uri} does not know tile {tile_id}: terrafm search "
            "--exact needs none"
        )

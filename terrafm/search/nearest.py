"""The most similar vectors of a stream, whatever its length, in the memory of a few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import TerraFMError

# Identical vectors may differ in the last bits of their similarity, by where in a batch they lie;
# in so many digits they are equal, so that their ids decide.
DIGITS = 9


@dataclass(frozen=True, order=True)
class Neighbour:
    """A vector that was found; the better one is the smaller one.

    Attributes:
        distance: cosine distance, 1 - similarity, 0..2.
        tile_id: whose vector.
    """

    distance: float
    tile_id: str

    @property
    def similarity(self) -> float:
        """Cosine of the angle to the query, -1..1."""
        return round(1 - self.distance, DIGITS)


class Nearest:
    """Keeps the most similar of all vectors that it is shown.

    The result does not depend on how the vectors are divided into batches, nor on their order:
    equal similarities are ordered by id.

    Args:
        query: (D,) vector that the others are compared with.
        count: how many to keep, at least 1.

    Raises:
        TerraFMError: the query is zero or not finite, so that it has no direction.
    """

    def __init__(self, query: NDArray[np.floating], count: int) -> None:
        self._query = query.astype(np.float64)
        norm = float(np.linalg.norm(self._query))
        if not 0 < norm < np.inf:
            raise TerraFMError("the query's embedding has no direction: it is zero or not finite")
        self._query /= norm
        self._count = count
        self._kept: list[Neighbour] = []
        self.seen = 0
        self.without_direction = 0

    def add(self, tile_ids: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Shows it some more vectors.

        Vectors without a direction (zero, or not finite) are counted and left out.

        Args:
            tile_ids: (N,) whose they are; any sequence whose items `str` makes an id of.
            vectors: (N, D).
        """
        distance = self._distances(vectors)
        known = np.isfinite(distance)
        self.seen += len(distance)
        self.without_direction += int((~known).sum())
        limit = self._kept[-1].distance if len(self._kept) == self._count else np.inf
        if len(distance) > self._count:
            limit = min(limit, np.partition(distance, self._count - 1)[self._count - 1])
        # All that are as good as the last one: which of them stay is for their ids to say.
        rows = np.flatnonzero(known & (distance <= limit)).tolist()
        found = [Neighbour(float(distance[row]), str(tile_ids[row])) for row in rows]
        self._kept = sorted([*self._kept, *found])[: self._count]

    def best(self) -> list[Neighbour]:
        """The most similar so far, the best first."""
        return list(self._kept)

    def _distances(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N,) cosine distances; infinite where a vector has no direction."""
        exact = vectors.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            similarity = exact @ self._query / np.linalg.norm(exact, axis=1)
        distance = np.round(1 - similarity, DIGITS)
        return np.where(np.isfinite(distance), distance, np.inf)

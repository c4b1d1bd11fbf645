"""For each sample a tile of its place at another date: `data.other_date`.

Pure and small, as the plan: names of places in, tile rows out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class OtherDates:
    """Tiles of one place, found by the row of any of them.

    Args:
        places: (N,) name of each tile's place, `Dataset.places`.
        seed: of the run.
    """

    def __init__(self, places: NDArray[np.object_], seed: int) -> None:
        self._seed = seed
        _, place, counts = np.unique(places.astype(str), return_inverse=True, return_counts=True)
        self._ordered = np.argsort(place, kind="stable")
        self._first = (np.cumsum(counts) - counts)[place]
        self._dates = counts[place]
        self._number = np.empty_like(self._ordered)
        self._number[self._ordered] = np.arange(len(places))
        self._number -= self._first

    def rows(
        self,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """A uniformly drawn other tile of each sample's place; its own where that is the only one.

        Args:
            rows: (n,) tile of each sample.
            epochs: (n,) its epoch.
            positions: (n,) its position in the epoch.
        """
        others = self._dates[rows] - 1
        steps = np.zeros_like(rows)
        for i in np.flatnonzero(others).tolist():
            counter = [0, 0, int(positions[i]), int(epochs[i])]
            word = np.random.Philox(key=[self._seed, 2], counter=counter).random_raw()
            steps[i] = 1 + int(word) % int(others[i])
        turned = (self._number[rows] + steps) % self._dates[rows]
        found: NDArray[Any] = self._ordered[self._first[rows] + turned]
        return found

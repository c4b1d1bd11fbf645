"""How much an index finds of what there is: some rows compared with all, while all pass by."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAREST = 10
MORE = 4
"""Bytes tell similarities to some thousandths: so many more are looked up and compared exactly."""


class Truth:
    """The nearest rows of some queries among all, exactly.

    Args:
        queries: (Q, D) unit vectors, rows of the folder themselves.
        rows: (Q,) their places in it.
    """

    def __init__(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        self._queries, self._own = queries, rows
        self._similarities = np.full((len(queries), NEAREST), -np.inf, np.float32)
        self._rows = np.full((len(queries), NEAREST), -1, np.int64)

    def add(self, first: int, vectors: NDArray[np.float32], known: NDArray[np.bool_]) -> None:
        """Shows it the next rows.

        Args:
            first: place of the first one.
            vectors: (N, D) unit vectors.
            known: (N,) those that have a direction.
        """
        found = np.where(known, self._queries @ vectors.T, -np.inf)
        # A query is no neighbour of its own.
        own = self._own - first
        here = np.flatnonzero((own >= 0) & (own < len(vectors)))
        found[here, own[here]] = -np.inf
        if found.shape[1] > NEAREST:
            best = np.argpartition(-found, NEAREST - 1, axis=1)[:, :NEAREST]
        else:
            best = np.broadcast_to(np.arange(found.shape[1]), found.shape)
        values = np.concatenate([self._similarities, np.take_along_axis(found, best, 1)], axis=1)
        rows = np.concatenate([self._rows, best + first], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :NEAREST]
        self._similarities = np.take_along_axis(values, order, 1)
        self._rows = np.take_along_axis(rows, order, 1)

    def compared(self, index: Any) -> tuple[NDArray[np.float64], list[float]]:
        """What an index of FAISS finds of it, with those few more.

        Returns:
            (Q,) shares of the nearest rows that were found, and the seconds of each search.
        """
        shares, times = [], []
        for query, own, rows, near in zip(
            self._queries, self._own, self._rows, self._similarities, strict=True
        ):
            start = time.perf_counter()
            _, found = index.search(query[None], NEAREST + MORE + 1)
            times.append(time.perf_counter() - start)
            real = set(rows[np.isfinite(near)].tolist())
            others = [row for row in found[0].tolist() if row != own][: NEAREST + MORE]
            shares.append(len(real.intersection(others)) / len(real) if real else 1.0)
        return np.array(shares), times

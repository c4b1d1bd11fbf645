"""Batches of an epoch in random order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def shuffled(
    rows: NDArray[np.int64], size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Every row once.

    Args:
        rows: (N,) of a set.
        size: rows of a batch. A last row that would be alone joins the batch before: batch
            normalisation cannot learn from one image.
        generator: of the order.

    Yields:
        (B,) rows.
    """
    order = generator.permutation(rows)
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) % size == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:stop]

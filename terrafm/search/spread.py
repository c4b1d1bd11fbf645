"""Mean and deviation of each dimension of a stream of vectors, in the memory of one batch."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

# The deviation of equal numbers is rounding, not 0.
_LEAST_SPREAD = 1e-6


class Spread:
    """Standardises vectors by the moments of all that it was shown.

    Batches are joined as Chan, Golub and LeVeque (1979) do it: sums of squares would lose what
    distinguishes numbers far from 0.

    Args:
        dim: length D of a vector.
    """

    MOMENTS = ("count", "mean", "squares", "largest")

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean = np.zeros(dim)
        # Of the distances from the mean.
        self._squares = np.zeros(dim)
        self._largest = np.zeros(dim)

    def moments(self) -> dict[str, NDArray[Any]]:
        """All that it knows, as arrays: (1,) and (D,)."""
        count = np.array([self._count], np.int64)
        found = zip(self.MOMENTS, (count, self._mean, self._squares, self._largest), strict=True)
        return dict(found)

    @classmethod
    def from_moments(cls, moments: dict[str, NDArray[Any]]) -> Self:
        """From what `moments` gave."""
        spread = cls(len(moments["mean"]))
        spread._count = int(moments["count"][0])
        spread._mean, spread._squares = moments["mean"], moments["squares"]
        spread._largest = moments["largest"]
        return spread

    def add(self, vectors: NDArray[np.floating]) -> None:
        """Shows it some more vectors, (N, D); those that are not finite are left out."""
        exact = vectors[np.isfinite(vectors).all(1)].astype(np.float64)
        if not len(exact):
            return
        mean = exact.mean(0)
        total = self._count + len(exact)
        apart = mean - self._mean
        self._squares += ((exact - mean) ** 2).sum(0)
        self._squares += apart**2 * (self._count * len(exact) / total)
        self._mean += apart * (len(exact) / total)
        self._largest = np.maximum(self._largest, np.abs(exact).max(0))
        self._count = total

    def standardise(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Vectors minus the mean, each dimension by its deviation.

        Args:
            vectors: (..., D).

        Returns:
            (..., D); a dimension that does not vary is 0, what is not finite stays so.
        """
        spread = np.sqrt(self._squares / max(self._count, 1))
        varies = spread > _LEAST_SPREAD * self._largest
        scale = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)
        with np.errstate(invalid="ignore"):
            return np.asarray((vectors.astype(np.float64) - self._mean) * scale, np.float64)

"""The rank of every query's partner among the candidates, by centred cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 512
# Products of equal rows differ in their last bits.
_EQUAL = 1e-9


def centred(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows minus their mean, of unit length: sensors and seasons have a mean of their own.

    Args:
        features: (N, D).

    Returns:
        (N, D); a row at the mean is 0.
    """
    return _unit(features - features.mean(0, dtype=np.float64))


def standardised(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows minus their mean, each dimension by its deviation, of unit length.

    Args:
        features: (N, D).

    Returns:
        (N, D); a dimension that does not vary is 0.
    """
    apart = features - features.mean(0, dtype=np.float64)
    spread = apart.std(0)
    # The deviation of equal numbers is rounding, not 0.
    varies = spread > 1e-6 * np.abs(features).max(0, initial=0.0)
    return _unit(np.where(varies, apart, 0.0) / np.where(varies, spread, 1.0))


@dataclass(frozen=True)
class Ranks:
    """Where the partner of each query stands.

    Attributes:
        before: (Q,) candidates that are more similar.
        equal: (Q,) other candidates that are as similar.
        candidates: (Q,) the partner and all others.
    """

    before: NDArray[np.int64]
    equal: NDArray[np.int64]
    candidates: NDArray[np.int64]

    def hits(self, depth: int) -> NDArray[np.float64]:
        """(Q,) chance that the partner is among the first `depth`, equal ones in any order."""
        return np.clip((depth - self.before) / (self.equal + 1), 0.0, 1.0)

    def middle(self) -> NDArray[np.float64]:
        """(Q,) the partner's rank from 1, in the middle of its equals."""
        return 1 + self.before + self.equal / 2

    def chance(self) -> Ranks:
        """Of features that tell nothing: all candidates are equal."""
        return Ranks(np.zeros_like(self.before), self.candidates - 1, self.candidates)


def partner_ranks(
    queries: NDArray[np.float64],
    gallery: NDArray[np.float64],
    partners: NDArray[np.int64],
    query_places: NDArray[np.int64],
    gallery_places: NDArray[np.int64],
) -> Ranks:
    """Ranks by the product of rows.

    Candidates are the partner and the gallery's rows of other places: another date of the
    query's own place is neither right nor wrong.

    Args:
        queries: (Q, D) rows of unit length, or of zeros.
        gallery: (N, D) rows of unit length, or of zeros.
        partners: (Q,) the partner's row of the gallery.
        query_places: (Q,) number of the place.
        gallery_places: (N,).
    """
    before, equal, others = (np.zeros(len(queries), np.int64) for _ in range(3))
    for start in range(0, len(queries), _CHUNK):
        block = slice(start, start + _CHUNK)
        similarity = queries[block] @ gallery.T
        own = similarity[np.arange(len(similarity)), partners[block]][:, None]
        other = query_places[block, None] != gallery_places[None, :]
        before[block] = ((similarity > own + _EQUAL) & other).sum(1)
        equal[block] = ((np.abs(similarity - own) <= _EQUAL) & other).sum(1)
        others[block] = other.sum(1)
    return Ranks(before, equal, others + 1)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float64)

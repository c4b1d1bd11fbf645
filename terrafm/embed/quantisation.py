"""Vectors in a byte a number: the range of each dimension in 255 equal steps.

    value = scale * number + offset, for each dimension

The range is that of all rows of a folder (of a GeoTIFF: of its pixels), so that no value is cut
off and the error is at most half a step. -128 stands for what is no number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

NO_NUMBER = -128
LEAST_COSINE = 0.999
"""What a row should keep of its direction; a folder with one below says so."""
_STEPS = 254
_MOST = 127

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """Least and largest finite value of each dimension, of what was seen so far.

    Attributes:
        low: (D,); inf where nothing was finite.
        high: (D,); -inf where nothing was finite.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, vectors: Vectors) -> "Range":
        """Of rows (N, D)."""
        finite = np.isfinite(vectors)
        low = np.where(finite, vectors, np.inf).min(0, initial=np.inf)
        high = np.where(finite, vectors, -np.inf).max(0, initial=-np.inf)
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    @classmethod
    def joined(cls, ranges: Sequence["Range"]) -> "Range":
        """Of several together."""
        low = np.min([found.low for found in ranges], axis=0)
        high = np.max([found.high for found in ranges], axis=0)
        return cls(tuple(low.tolist()), tuple(high.tolist()))


class Scales(BaseModel):
    """What makes values of stored numbers.

    Attributes:
        scale: (D,) step of each dimension.
        offset: (D,) value of the number 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["linear"] = "linear"
    data_type: Literal["int8"] = "int8"
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    offset: tuple[float, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.scale) != len(self.offset):
            raise ValueError(f"{len(self.scale)} scales but {len(self.offset)} offsets")
        return self

    @classmethod
    def over(cls, found: Range) -> "Scales":
        """Those that cover a range; a dimension that does not vary is kept by its offset."""
        low, high = np.array(found.low), np.array(found.high)
        seen = low <= high
        low, high = np.where(seen, low, 0.0), np.where(seen, high, 0.0)
        scale = (high - low) / _STEPS
        # What is smaller could not be told from 0 in float32.
        scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
        # As they are applied: in float32.
        return cls(
            scale=tuple(scale.astype(np.float32).tolist()),
            offset=tuple(((high + low) / 2).astype(np.float32).tolist()),
        )

    def encode(self, vectors: Vectors) -> NDArray[np.int8]:
        """Rows (N, D) as bytes."""
        scale, offset = self._arrays()
        with np.errstate(invalid="ignore"):
            numbers = np.clip(np.rint((vectors - offset) / scale), -_MOST, _MOST)
        return np.where(np.isfinite(vectors), numbers, NO_NUMBER).astype(np.int8)

    def decode(self, numbers: NDArray[np.int8]) -> Vectors:
        """Rows (N, D) of values; NaN where there was no number."""
        scale, offset = self._arrays()
        values = numbers * scale + offset
        values[numbers == NO_NUMBER] = np.nan
        return np.asarray(values, np.float32)

    def cosines(self, vectors: Vectors) -> NDArray[np.float64]:
        """Cosine of each row (N, D) to what is stored of it; rows without direction are left out.

        Returns:
            (M,) -1..1.
        """
        kept = self.decode(self.encode(vectors)).astype(np.float64)
        exact = vectors.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(kept, axis=1)
            found = (exact * kept).sum(1) / norms
        return np.asarray(found[np.isfinite(found)], np.float64)

    def _arrays(self) -> tuple[Vectors, Vectors]:
        return np.array(self.scale, np.float32), np.array(self.offset, np.float32)


class Quantisation(Scales):
    """Scales of a folder, and what they cost.

    Attributes:
        least_cosine: of a row to its float32, the lowest of all.
        mean_cosine: of all rows.
    """

    least_cosine: float
    mean_cosine: float

"""Which products and tiles an ingest keeps: limits on pairs, open sea, a spread-out maximum.

Every rule is a pure function of what it looks at and a seed, never of workers or order. None of
these is a fault: what they leave out is counted in the report, not in the quarantine.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import Listed
from terrafm.data.land.regions import region_codes
from terrafm.modalities import FIRST_CHOICE

WATER = 80
"""WorldCover's code."""

NO_CLASS = -1
"""In land cover, of pixels of which the class is not known: they have no vote."""

ANCHORS = FIRST_CHOICE
SPREADS = ("land_cover", "climate", "region")


@dataclass(frozen=True)
class Limits:
    """What a product must keep to be joined into its cell.

    Attributes:
        max_gap_days: most days between a product and the cell's anchor; None for any.
        max_cloud_cover: most cloud of an optical product, 0..100; None for any.
    """

    max_gap_days: float | None = None
    max_cloud_cover: float | None = None

    def left_out(self, listed: Mapping[str, Listed]) -> dict[str, str]:
        """Products that break a limit.

        Clouds are judged first; the anchor is the first of `ANCHORS` that is left and has a time.
        What the archive does not say breaks no limit.

        Args:
            listed: modality -> time and cloud cover of the cell's product.

        Returns:
            Modality -> rule, "clouds" or "gap".
        """
        cloudy = {
            modality: "clouds"
            for modality, product in listed.items()
            if self.max_cloud_cover is not None
            and product.cloud_cover is not None
            and product.cloud_cover > self.max_cloud_cover
        }
        clear = {m: product.time for m, product in listed.items() if m not in cloudy}
        far = {
            modality: "gap"
            for modality, days in days_from_anchor(clear).items()
            if self.max_gap_days is not None and days > self.max_gap_days
        }
        return cloudy | far


def days_from_anchor(times: Mapping[str, str]) -> dict[str, float]:
    """Days between each product and the cell's anchor.

    Args:
        times: modality -> acquisition time, ISO 8601, or "" where it is not known.

    Returns:
        Modality -> days for those with a time; 0 for the anchor itself.
    """
    known = {modality: t for modality, text in times.items() if (t := parse_time(text))}
    anchor = next((known[modality] for modality in ANCHORS if modality in known), None)
    if anchor is None:
        return {}
    return {m: abs((time - anchor).total_seconds()) / 86400 for m, time in known.items()}


def parse_time(text: str) -> datetime | None:
    """An ISO 8601 time, UTC where it names no zone; None for any other text."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def drops_water(tile_id: str, seed: int, share: float) -> bool:
    """The ocean rule: whether a water-only tile belongs to the share that is dropped."""
    return _hash(f"{seed}:{tile_id}") < share * 2**64


def fill_quotas(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Shares out `total` places as evenly as the strata can fill them (water-filling).

    Every stratum gets the same, unless it has fewer tiles; what does not divide evenly goes to
    the largest strata, one each.

    Args:
        sizes: (S,) tiles of each stratum.
        total: places, at most the sum of the sizes.

    Returns:
        (S,) places of each stratum; their sum is `total`.
    """
    quotas = np.zeros_like(sizes)
    left, open_strata = total, len(sizes)
    for stratum in np.argsort(sizes, kind="stable"):
        quotas[stratum] = min(int(sizes[stratum]), left // open_strata)
        left -= int(quotas[stratum])
        open_strata -= 1
    return quotas


def choose_tiles(
    tile_ids: Sequence[str], strata: Sequence[NDArray[Any]], most: int, seed: int
) -> NDArray[np.bool_]:
    """The tiles that stay where only `most` may.

    Args:
        tile_ids: (N,) unique names.
        strata: (N,) integer columns whose combinations are the strata; none: all one stratum.
        most: tiles that stay.
        seed: another seed takes other tiles of a stratum.

    Returns:
        (N,) True for the tiles that stay: all where N <= most. Inside a stratum those with the
        smallest hash of id and seed, so that neither order nor neighbours matter.
    """
    if len(tile_ids) <= most:
        return np.ones(len(tile_ids), dtype=bool)
    keys = np.stack([np.zeros(len(tile_ids), np.int64), *strata], axis=1)
    _, stratum, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    quotas = fill_quotas(sizes, most)
    draws = np.array([_hash(f"{seed}:spread:{name}") for name in tile_ids], dtype=np.uint64)
    order = np.lexsort((draws, stratum))
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(tile_ids), dtype=np.int64)
    rank[order] = np.arange(len(tile_ids)) - starts[stratum[order]]
    kept: NDArray[np.bool_] = rank < quotas[stratum]
    return kept


def stratum_columns(
    spread: Sequence[str], columns: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """The columns that `choose_tiles` needs.

    Args:
        spread: names out of `SPREADS`.
        columns: (N,) land_cover, climate, latitude and longitude of the tiles.
    """
    return [
        region_codes(columns["latitude"], columns["longitude"])
        if name == "region"
        else columns[name]
        for name in spread
    ]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

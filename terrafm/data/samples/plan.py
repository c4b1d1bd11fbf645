"""Which tile is the sample at (epoch, position): class-frequency resampling and the epoch plan.

Pure and small: land-cover classes in, tile rows out. No pixels, no Ray, no global random state.
A plan depends on nothing but the classes, the seed and three numbers, so every worker of any
world computes the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import UsageError

if TYPE_CHECKING:
    from terrafm.config import Config
    from terrafm.data.shards.dataset import Dataset

Integers = NDArray[np.integer[Any]]

# Part of every plan's hash: a change of the algorithm below must change it.
_ALGORITHM = "stratified-copies-1"
# Of a copy's share of the epoch, the part within which it moves freely; the rest keeps copies of
# one tile apart.
_JITTER = 0.5


def high_frequency_classes(
    land_cover: Integers, override: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The classes that the second center of dual centering averages over.

    Those with a share above 1 / (number of classes present): none where there is one class, or
    where all are equally frequent.

    Args:
        land_cover: (N,) class code of each tile that is sampled: `Plan.sampled`.
        override: takes the rule's place; codes that no tile has are ignored.

    Raises:
        UsageError: no sampled tile has any of the overriding codes.
    """
    codes, counts = np.unique(land_cover, return_counts=True)
    if override is not None:
        kept = tuple(sorted(set(override) & set(codes.tolist())))
        if override and not kept:
            raise UsageError(
                f"loss.high_frequency_classes {list(override)}: no tile that is sampled has any "
                f"of these classes; there are {codes.tolist()}"
            )
        return kept
    # Integers: f_c > 1 / n without rounding.
    return tuple(codes[counts * len(codes) > len(land_cover)].tolist())


def resampled_counts(
    land_cover: Integers, *, exponent: float, length: int | None = None, cap: float | None = None
) -> dict[int, int]:
    """Samples of each class in one epoch: n_c with sum L.

    p_c is proportional to f_c^(1 - exponent), n_c = L p_c by largest remainder (ties to the lower
    code). With a cap of r copies per tile, n_c <= r N_c; what that cuts off goes to the uncapped
    classes in proportion to p_c.

    Args:
        land_cover: (N,) class code of each tile.
        exponent: 0 keeps the shares, 1 makes classes equal.
        length: samples of the epoch (L); as many as tiles by default.
        cap: most copies of a tile (r); no limit by default.

    Raises:
        UsageError: the cap leaves no room for L samples.
    """
    codes, sizes = np.unique(land_cover, return_counts=True)
    length = len(land_cover) if length is None else length
    room = np.full(len(codes), length) if cap is None else np.floor(cap * sizes).astype(np.int64)
    if length > room.sum():
        raise UsageError(
            f"data.epoch_length {length} needs more than data.resample_cap {cap:g} copies of "
            f"{len(land_cover)} tiles: raise the cap or shorten the epoch"
        )
    counts = _apportion(sizes.astype(np.float64) ** (1.0 - exponent), room, length)
    return {int(code): int(n) for code, n in zip(codes, counts, strict=True)}


def region_counts(
    sizes: Integers, count: int, *, exponent: float, cap: float | None = None
) -> NDArray[np.int64]:
    """Samples of one class in each region: n_{c,r} with sum n_c.

    p_{r|c} is proportional to f_{r|c}^(1 - exponent), n_{c,r} = n_c p_{r|c} by largest remainder
    (ties to the lower region). With a cap of r copies per tile, n_{c,r} <= r N_{c,r}, rounded so
    that the regions have room for what the class has room for; what that cuts off goes to the
    other regions in proportion to p_{r|c}.

    Args:
        sizes: (R,) tiles of the class in each region (N_{c,r}); a region may have none.
        count: samples of the class (n_c), no more than `cap` leaves room for.
        exponent: 0 keeps the shares, 1 makes regions equal.
        cap: most copies of a tile (r); no limit by default.

    Returns:
        (R,) samples.
    """
    present = np.flatnonzero(sizes)
    tiles = np.asarray(sizes)[present].astype(np.float64)
    if cap is None:
        room = np.full(len(present), count)
    else:
        room = _largest_remainder(cap * tiles, int(np.floor(cap * tiles.sum())))
    counts = np.zeros(len(sizes), dtype=np.int64)
    counts[present] = _apportion(tiles ** (1.0 - exponent), room, count)
    return counts


class Plan:
    """The endless sequence of samples: epochs of L tile rows, one after the other.

    Each tile of class c occurs floor or ceil of n_c / N_c times in an epoch, or of
    n_{c,r} / N_{c,r} in region r where regions are balanced within the classes; (seed, epoch) draw
    which ones occur once more and where. The copies of a tile share the epoch evenly: k copies
    keep a distance of at least 1 / (2 k) of the epoch, so that a batch rarely sees a tile twice.

    Args:
        land_cover: (N,) class code of each tile.
        seed: of the run.
        exponent: see `resampled_counts`.
        epoch_length: L; as many as tiles by default.
        cap: see `resampled_counts`.
        regions: (N,) region code of each tile; needed where `region_exponent` is above 0.
        region_exponent: see `region_counts`; at 0 regions play no part.
        kept: (N,) bool, the tiles that are sampled at all; the others are as if they were not
            there. By default all.

    Attributes:
        length: L.
        counts: class -> samples of one epoch.
        sampled: (M,) class code of each tile that is sampled. f_c is a class's share of these,
            for the resampling and for the high-frequency rule alike.
        hash: of all that decides the sequence.

    Raises:
        UsageError: no tiles, no regions to balance, or the cap leaves no room for L samples.
    """

    def __init__(
        self,
        land_cover: Integers,
        *,
        seed: int,
        exponent: float,
        epoch_length: int | None = None,
        cap: float | None = None,
        regions: Integers | None = None,
        region_exponent: float = 0.0,
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        self.sampled = np.asarray(land_cover if kept is None else land_cover[kept])
        if len(self.sampled) == 0:
            raise UsageError("cannot plan an epoch without tiles")
        self.seed = seed
        self.length = len(self.sampled) if epoch_length is None else epoch_length
        self.counts = resampled_counts(self.sampled, exponent=exponent, length=self.length, cap=cap)
        self._land_cover = np.asarray(land_cover)
        self._kept = kept
        settings = [_ALGORITHM, seed, float(exponent), self.length, cap and float(cap)]
        if region_exponent:
            settings.append(["regions", float(region_exponent)])
        digest = hashlib.sha256(json.dumps(settings).encode())
        digest.update(np.ascontiguousarray(self._land_cover, dtype="<i4").data)
        if kept is not None:
            digest.update(np.packbits(kept).data)
        # What plays no part is not kept, and does not change the hash.
        self._regions: Integers | None = None
        self._cap, self._region_exponent = cap, region_exponent
        if region_exponent:
            codes = _checked_regions(regions, len(land_cover))
            digest.update(np.ascontiguousarray(codes, dtype="<i4").data)
            # Numbered from 0 in as few bits as will do: such are sorted in linear time.
            self._regions = np.searchsorted(np.unique(codes), codes).astype(np.int16)
        self.hash = digest.hexdigest()
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """(L,) tile row at each position of an epoch; read-only."""
        return self._epoch(epoch)

    def samples(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """A stretch of the endless concatenation of epochs.

        Args:
            start: index of the first sample; step s of global batch B begins at s B.
            stop: index after the last one.

        Returns:
            (n,) epoch, (n,) position in the epoch, and (n,) tile row of each sample.
        """
        return self.lookup(np.arange(start, stop, dtype=np.int64))

    def lookup(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """As `samples`, for any indices into the endless concatenation of epochs."""
        epochs, positions = np.divmod(indices, self.length)
        rows = np.empty_like(indices)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self.epoch(epoch)[positions[here]]
        return epochs, positions, rows

    def _strata(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Rows that are alike to the plan, ascending, and the samples that they have together."""
        for code, count in self.counts.items():
            alike = self._land_cover == code
            rows = np.flatnonzero(alike if self._kept is None else alike & self._kept)
            if self._regions is None:
                yield rows, count
                continue
            regions = self._regions[rows]
            sizes = np.bincount(regions)
            counts = region_counts(sizes, count, exponent=self._region_exponent, cap=self._cap)
            by_region = rows[np.argsort(regions, kind="stable")]
            for part, share in zip(
                np.split(by_region, np.cumsum(sizes)[:-1]), counts.tolist(), strict=True
            ):
                if len(part):
                    yield part, share

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        bits = np.random.Philox(key=[self.seed, 0], counter=[0, 0, 0, epoch])
        generator = np.random.Generator(bits)
        copies = np.zeros(len(self._land_cover), dtype=np.int32)
        for rows, count in self._strata():
            each, once_more = divmod(count, len(rows))
            copies[rows] = each
            if once_more:
                lottery = generator.random(len(rows))
                copies[rows[np.argpartition(lottery, once_more - 1)[:once_more]]] += 1

        order = np.repeat(np.arange(len(copies), dtype=np.int32), copies)
        number = np.arange(self.length, dtype=np.int32)
        number -= np.repeat(np.cumsum(copies, dtype=np.int32) - copies, copies)
        # Time in the epoch, a circle of length 1: a tile's copies stand at equal distances from a
        # random start, then each moves on by up to half of that distance.
        time = generator.random(self.length)
        time *= _JITTER
        time += np.repeat(generator.random(len(copies)), copies)
        time += number
        time /= np.repeat(copies, copies)
        time %= 1.0
        rows = order[np.argsort(time, kind="stable")].astype(np.int64)
        rows.flags.writeable = False
        return rows


def make_plan(dataset: Dataset, config: Config) -> Plan:
    """The plan of a configuration over a dataset.

    Raises:
        UsageError: as `Plan`.
    """
    data = config.data
    return Plan(
        dataset.land_cover,
        seed=config.train.seed,
        exponent=data.resample_exponent,
        epoch_length=data.epoch_length,
        cap=data.resample_cap,
        regions=dataset.regions if data.region_exponent else None,
        region_exponent=data.region_exponent,
        kept=dataset.sampled(data.water_keep),
    )


def _checked_regions(regions: Integers | None, tiles: int) -> Integers:
    if regions is None or len(regions) != tiles:
        raise UsageError(
            "data.region_exponent needs the region of every tile: set it to 0, or give the plan "
            f"{tiles} region codes"
        )
    return np.asarray(regions)


def _apportion(weights: NDArray[np.float64], room: Integers, total: int) -> NDArray[np.int64]:
    """Integers in proportion to weights, none above its room, with sum `total`."""
    targets = np.zeros(len(weights))
    free = np.ones(len(weights), dtype=bool)
    while free.any():
        left = total - room[~free].sum()
        targets[free] = left * weights[free] / weights[free].sum()
        over = free & (targets > room + 1e-9)
        if not over.any():
            break
        targets[over] = room[over]
        free &= ~over
    return _largest_remainder(targets, total)


def _largest_remainder(targets: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    # Rounded, so that equal remainders stay equal whatever the last bits say.
    floors = np.floor(targets + 1e-9).astype(np.int64)
    remainders = np.round(targets - floors, 9)
    order = np.argsort(-remainders, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors

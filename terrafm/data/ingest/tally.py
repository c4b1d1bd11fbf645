"""What ingest counts while it works, in integers: the sum does not depend on the order."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from typing import Annotated, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from terrafm.data.rasters.units import Decision
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage.records import Code, Count, open_keys, validated

_COUNTS = (
    "cells",
    "cells_without_worldcover",
    "tiles_seen",
    "tiles_quarantined",
    "tiles_over_limits",
    "water_only",
    "water_only_dropped",
    "edge_pixels_dropped",
    "tiles",
)


_Long = Annotated[int, Field(strict=True, gt=-(2**200), lt=2**200)]


def _check_sums(sums: tuple[int, int, int]) -> tuple[int, int, int]:
    count, total, squares = sums
    if count * squares < total * total or (not count and squares):
        raise ValueError("no numbers have such a count, sum and sum of squares")
    return sums


_Sums = Annotated[tuple[Count, _Long, _Long], AfterValidator(_check_sums)]


@open_keys
class _Fault(TypedDict):
    what: str
    modality: str
    where: str
    why: str
    quarantined: bool


class _Stated(TypedDict):
    """What `Tally.to_json` gives; some of it earlier versions did not."""

    counts: dict[str, Count]
    left_out: list[tuple[str, str, Count]]
    missing_bands: NotRequired[list[tuple[str, str, Count]]]
    classes_before: list[tuple[Code, Count]]
    codes: list[Code]
    lacking: NotRequired[dict[str, Count]]
    decisions: list[tuple[str, str, int, str, Count]]
    margins: NotRequired[list[tuple[str, str, int, str, int]]]
    sums: dict[str, dict[str, _Sums]]
    quarantine: list[_Fault]


@dataclass
class Tally:
    """Counts of one shard, or of all.

    Attributes:
        counts: cells, and those of which a WorldCover tile lacks; tiles seen; of these
            quarantined, lost because a required product broke a limit, water-only, dropped as
            water-only, and kept; pixels of the finest grid at the cells' edges that fill no tile.
        left_out: (modality, rule) -> products that broke a limit and were not joined.
        missing_bands: (modality, band) -> joined products that lack it.
        classes_before: majority class -> tiles seen whose land cover is known.
        codes: all land-cover codes that occur in kept tiles.
        lacking: WorldCover tile -> cells whose land cover it would have told.
        decisions: (modality, unit, offset, reason) -> products.
        margins: as above -> the least margin of those products, where pixels decided.
        sums: modality -> band -> (pixels, sum, sum of squares) of the storage integers.
        quarantine: one entry for each fault: tile or cell, modality, where, why, and whether
            tiles were lost by it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    missing_bands: Counter[tuple[str, str]] = field(default_factory=Counter)
    classes_before: Counter[int] = field(default_factory=Counter)
    codes: set[int] = field(default_factory=set)
    lacking: Counter[str] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str, int, str]] = field(default_factory=Counter)
    margins: dict[tuple[str, str, int, str], int] = field(default_factory=dict)
    sums: dict[str, dict[str, tuple[int, int, int]]] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def decide(self, modality: str, decision: Decision) -> None:
        """Counts what was decided of a product."""
        key = (modality, decision.unit, decision.offset, decision.reason)
        self.decisions[key] += 1
        if decision.margin is not None:
            self.margins[key] = min(decision.margin, self.margins.get(key, decision.margin))

    def fault(self, what: str, modality: str, where: str, why: str, *, fatal: bool) -> None:
        """Records one fault; `fatal` says that the tile, or the cell's tiles, are lost."""
        self.quarantine.append(
            {"what": what, "modality": modality, "where": where, "why": why, "quarantined": fatal}
        )

    def add_pixels(self, modality: str, bands: Iterable[str], stored: NDArray[Any]) -> None:
        """Adds (bands, h, w) storage integers to the sums; nodata is left out."""
        sums = self.sums.setdefault(modality, {})
        for band, pixels in zip(bands, stored, strict=True):
            valid = pixels[pixels != MODALITIES[modality].nodata].astype(np.int64)
            new = (valid.size, int(valid.sum()), int(np.dot(valid, valid)))
            old = sums.get(band, (0, 0, 0))
            sums[band] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])

    def merge(self, other: "Tally") -> None:
        """Adds another tally; entries of the quarantine list are appended."""
        self.counts.update(other.counts)
        self.left_out.update(other.left_out)
        self.missing_bands.update(other.missing_bands)
        self.classes_before.update(other.classes_before)
        self.codes |= other.codes
        self.lacking.update(other.lacking)
        self.decisions.update(other.decisions)
        for key, margin in other.margins.items():
            self.margins[key] = min(margin, self.margins.get(key, margin))
        for modality, bands in other.sums.items():
            mine = self.sums.setdefault(modality, {})
            for band, (count, total, squares) in bands.items():
                old = mine.get(band, (0, 0, 0))
                mine[band] = (old[0] + count, old[1] + total, old[2] + squares)
        self.quarantine += other.quarantine

    def statistics(self, modalities: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
        """Mean and standard deviation per band in physical units, in model band order.

        A band without spread (or without pixels) gets a standard deviation of 1, so that
        normalisation stays defined.
        """
        result: dict[str, dict[str, list[Any]]] = {}
        for name in modalities:
            modality = MODALITIES[name]
            means, deviations = [], []
            for band in modality.bands:
                count, total, squares = self.sums.get(name, {}).get(band, (0, 0, 0))
                # Exact until the last division: integers of any length, as Python has them.
                spread = count * squares - total * total
                means.append(total / count * modality.scale if count else 0.0)
                deviations.append(sqrt(spread / count**2) * modality.scale if spread else 1.0)
            result[name] = {"bands": list(modality.bands), "mean": means, "std": deviations}
        return result

    def summary(self) -> dict[str, Any]:
        """The counts and decisions for the dataset's report, ready for JSON."""
        decisions: dict[str, list[dict[str, Any]]] = {}
        for key, products in sorted(self.decisions.items()):
            modality, unit, offset, reason = key
            found = {"unit": unit, "offset": offset, "reason": reason, "products": products}
            if key in self.margins:
                found["margin"] = self.margins[key]
            decisions.setdefault(modality, []).append(found)
        return {
            "selection": {name: self.counts[name] for name in _COUNTS},
            "products_left_out": _nested(self.left_out),
            "missing_bands": _nested(self.missing_bands),
            "class_counts_before_selection": {
                str(code): count for code, count in sorted(self.classes_before.items())
            },
            "worldcover_lacking": dict(sorted(self.lacking.items())),
            "decisions": decisions,
            "quarantine": {
                "tiles": self.counts["tiles_quarantined"],
                "faults": len(self.quarantine),
                "by_modality": dict(
                    sorted(Counter(q["modality"] for q in self.quarantine).items())
                ),
            },
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "left_out": [[*key, count] for key, count in sorted(self.left_out.items())],
            "missing_bands": [[*key, count] for key, count in sorted(self.missing_bands.items())],
            "classes_before": sorted(self.classes_before.items()),
            "codes": sorted(self.codes),
            "lacking": dict(sorted(self.lacking.items())),
            "decisions": [[*key, count] for key, count in sorted(self.decisions.items())],
            "margins": [[*key, margin] for key, margin in sorted(self.margins.items())],
            "sums": {m: {b: list(s) for b, s in bands.items()} for m, bands in self.sums.items()},
            "quarantine": self.quarantine,
        }

    @classmethod
    def from_json(cls, stated: Any, where: str = "a shard") -> "Tally":
        """Restores what `to_json` gave.

        Args:
            stated: of a shard's entry.
            where: name of the shard, for the error.

        Raises:
            UsageError: it is not what `to_json` gives.
        """
        try:
            values = validated(stated, _Stated)
        except ValueError as error:
            raise UsageError(
                f"what ingest counted of {where} is not readable: {error}: remove its entry under "
                "entries/ and ingest again"
            ) from None
        return cls(
            counts=Counter(values["counts"]),
            left_out=Counter({(m, rule): count for m, rule, count in values["left_out"]}),
            # Shards of an ingest that an older version began have none.
            missing_bands=Counter(
                {(m, band): count for m, band, count in values.get("missing_bands", [])}
            ),
            classes_before=Counter({int(c): n for c, n in values["classes_before"]}),
            codes=set(values["codes"]),
            # Entries of older versions have none.
            lacking=Counter(values.get("lacking", {})),
            decisions=Counter({(m, u, o, r): n for m, u, o, r, n in values["decisions"]}),
            # Shards of earlier versions have none.
            margins={(m, u, o, r): n for m, u, o, r, n in values.get("margins", [])},
            sums=values["sums"],
            quarantine=[dict(fault) for fault in values["quarantine"]],
        )


def _nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (modality, name), count in sorted(counts.items()):
        nested.setdefault(modality, {})[name] = count
    return nested

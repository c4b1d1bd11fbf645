"""Which products of a Major-TOM grid cell belong together.

Products are joined by the name of the grid cell. Level-2A is the anchor: where a cell has
several, the one with least cloud is taken, then with least nodata, then the latest, then the
first by product name. Of every other sensor the product nearest in time to the anchor is taken,
which for Level-1C is the one of the same datatake where there is one; ties go by the same rule.
A cell without Level-2A takes Level-1C, and without that Sentinel-1, as its anchor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from terrafm.data.archive import BadCellError, CellRef, Listed
from terrafm.data.land.selection import ANCHORS, days_from_anchor, parse_time
from terrafm.data.sources.metadata import BadRow

_RANKING = {
    "grid_cell": True,
    "gap": True,
    "cloud_cover": True,
    "nodata": True,
    "time": False,
    "product_id": True,
    "parquet_row": True,
}
_REPORTED_DAYS = (1, 4, 7, 30)


@dataclass(frozen=True)
class MetadataRow:
    """Where one product lies, and what metadata.parquet says of it.

    Attributes:
        uri: of the Parquet file with its pixels.
        row: row number in that file.
        product_id: name of the product.
        time: acquisition time, ISO 8601, or "".
        cloud_cover: 0..100, or None.
    """

    uri: str
    row: int
    product_id: str
    time: str
    cloud_cover: float | None


def pair_products(
    tables: Mapping[str, pd.DataFrame], bad: Mapping[str, Sequence[BadRow]] | None = None
) -> tuple[list[CellRef], dict[str, Any]]:
    """Chooses one product per cell and sensor.

    Args:
        tables: modality -> usable rows of `read_metadata`, in the order of `ANCHORS`.
        bad: modality -> the other rows, which become faults of their cells.

    Returns:
        The cells in the order in which their anchors lie in the archive's files, with a
        `MetadataRow` per modality as location; and for the report, how many cells occurred more
        than once and how far apart in time the pairs are (`count_pairs`).
    """
    anchors: dict[str, pd.Timestamp] = {}
    chosen: dict[str, dict[str, MetadataRow]] = {}
    order: list[tuple[str, int, str]] = []
    repeats: dict[str, int] = {}
    centres: dict[str, tuple[float, float]] = {}
    for modality, table in tables.items():
        anchor = pd.to_datetime(table["grid_cell"].map(anchors), utc=True)
        ranked = table.assign(gap=(table["time"] - anchor).abs()).sort_values(
            list(_RANKING), ascending=list(_RANKING.values()), na_position="last"
        )
        picked = ranked.drop_duplicates("grid_cell")
        repeated = ranked.loc[ranked["grid_cell"].duplicated(), "grid_cell"]
        repeats[modality] = int(repeated.nunique())
        for row in picked.to_dict("records"):
            cell = row["grid_cell"]
            if cell not in chosen:
                chosen[cell] = {}
                anchors[cell] = row["time"]
                order.append((row["uri"], int(row["parquet_row"]), cell))
            if not pd.isna(row["longitude"] + row["latitude"]):
                centres.setdefault(cell, (row["longitude"], row["latitude"]))
            chosen[cell][modality] = MetadataRow(
                uri=row["uri"],
                row=int(row["parquet_row"]),
                product_id=str(row["product_id"]),
                time="" if pd.isna(row["time"]) else row["time"].isoformat(),
                cloud_cover=None if pd.isna(row["cloud_cover"]) else row["cloud_cover"],
            )
    faults: dict[str, list[tuple[str, BadCellError]]] = {}
    for modality, rows in (bad or {}).items():
        for one in rows:
            # Without a cell the row stands for one of its own.
            cell = one.cell or f"{modality} {one.fault.why.partition(':')[0]}"
            faults.setdefault(cell, []).append((modality, one.fault))
    refs = [
        CellRef(
            cell,
            chosen[cell],
            tuple(chosen[cell]),
            {m: Listed(row.time, row.cloud_cover) for m, row in chosen[cell].items()},
            tuple(faults.pop(cell, ())),
            centres.get(cell),
        )
        for *_, cell in sorted(order)
    ]
    refs += [CellRef(cell, {}, (), faults=tuple(found)) for cell, found in sorted(faults.items())]
    return refs, {"repeated_cells": repeats, "pairing": count_pairs(refs)}


def count_pairs(refs: Sequence[CellRef]) -> dict[str, dict[str, int]]:
    """How far apart in time the products of a cell are, by what the listing tells.

    Returns:
        Modality -> cells in which its time and that of an anchor of another modality are known,
        and how many of these are within 1, 4, 7 and 30 days; modalities without any are left out.
    """
    gaps: dict[str, list[float]] = {}
    for ref in refs:
        days = days_from_anchor({m: product.time for m, product in ref.listed.items()})
        for modality in [m for m in ANCHORS if m in days][1:]:
            gaps.setdefault(modality, []).append(days[modality])
    return {
        modality: {"cells": len(days)}
        | {f"within_{limit}_days": sum(d <= limit for d in days) for limit in _REPORTED_DAYS}
        for modality, days in gaps.items()
    }


def nearest(time: str, candidates: Mapping[str, str]) -> str | None:
    """The candidate nearest in time; ties go to the later one, then to the first by name.

    Args:
        time: ISO 8601, or "" where it is not known: then the latest candidate is taken.
        candidates: name -> time, ISO 8601 or "".
    """
    anchor = parse_time(time)

    def rank(name: str) -> tuple[float, float, str]:
        own = parse_time(candidates[name])
        if own is None:
            return float("inf"), float("inf"), name
        gap = abs((own - anchor).total_seconds()) if anchor else 0.0
        return gap, -own.timestamp(), name

    return min(candidates, key=rank, default=None)

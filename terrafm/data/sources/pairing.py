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
import pyarrow as pa

from terrafm.data.sources.base import CellRef, Listed
from terrafm.data.sources.folders import is_file, names_if_listed
from terrafm.data.tiles.selection import ANCHORS, days_from_anchor, parse_time
from terrafm.errors import UsageError
from terrafm.storage import is_local, join
from terrafm.storage.faults import explain, is_passing, patiently
from terrafm.storage.parquet import open_parquet

_REQUIRED = ("grid_cell", "product_id", "parquet_url", "parquet_row")
_OPTIONAL = ("timestamp", "cloud_cover", "nodata")
_RANKING = {
    "grid_cell": True,
    "gap": True,
    "cloud_cover": True,
    "nodata": True,
    "time": False,
    "product_id": True,
    "parquet_row": True,
}
# Where metadata.parquet may send a reader, beside the archive's own host: not to files of this
# machine, nor to what its network only answers from inside.
_PUBLISHED = ("https://", "s3://", "hf://")
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


def read_metadata(folder: str) -> pd.DataFrame:
    """Reads metadata.parquet of one sensor, only the columns that matter.

    Returns:
        One row per product: grid_cell, product_id, parquet_row, uri, time (UTC), cloud_cover,
        nodata.

    Raises:
        UsageError: the file is damaged, empty, or lacks a column.
        StoreFailedError: the store fails for too long.
    """
    uri = join(folder, "metadata.parquet")
    try:
        file = patiently(lambda: open_parquet(uri), uri)
        names = file.schema_arrow.names
        absent = [name for name in _REQUIRED if name not in names]
        if absent:
            raise UsageError(f"{uri} has no column {', '.join(absent)}")
        wanted = [name for name in (*_REQUIRED, *_OPTIONAL) if name in names]
        table = patiently(lambda: file.read(columns=wanted), uri)
        file.close(force=True)
    except (OSError, pa.ArrowException) as error:
        if is_passing(error):
            raise explain(error, "read", uri) from None
        detail = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot read {uri} (damaged or cut short?): {detail}") from None
    if not table.num_rows:
        raise UsageError(f"{uri} lists no product")
    frame = pd.DataFrame(table.to_pandas())
    frame["time"] = _times(frame)
    for name in ("cloud_cover", "nodata"):
        frame[name] = frame[name].astype(float) if name in frame else float("nan")
    urls = sorted(frame["parquet_url"].unique())
    parts = _parts(folder, urls[0])
    located = {url: _locate(url, folder, parts) for url in urls}
    frame["uri"] = frame["parquet_url"].map(located)
    return frame


def pair_products(tables: dict[str, pd.DataFrame]) -> tuple[list[CellRef], dict[str, Any]]:
    """Chooses one product per cell and sensor.

    Args:
        tables: modality -> result of `read_metadata`, in the order of `ANCHORS`.

    Returns:
        The cells in the order in which their anchors lie in the archive's files, with a
        `MetadataRow` per modality as location; and for the report, how many cells occurred more
        than once and how far apart in time the pairs are (`count_pairs`).
    """
    anchors: dict[str, pd.Timestamp] = {}
    chosen: dict[str, dict[str, MetadataRow]] = {}
    order: list[tuple[str, int, str]] = []
    repeats: dict[str, int] = {}
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
            chosen[cell][modality] = MetadataRow(
                uri=row["uri"],
                row=int(row["parquet_row"]),
                product_id=str(row["product_id"]),
                time="" if pd.isna(row["time"]) else row["time"].isoformat(),
                cloud_cover=None if pd.isna(row["cloud_cover"]) else row["cloud_cover"],
            )
    refs = [
        CellRef(
            cell,
            chosen[cell],
            tuple(chosen[cell]),
            {m: Listed(row.time, row.cloud_cover) for m, row in chosen[cell].items()},
        )
        for *_, cell in sorted(order)
    ]
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


def _times(table: pd.DataFrame) -> "pd.Series[pd.Timestamp]":
    """Acquisition times: the timestamp in whatever format it is, else from the product's name."""
    times = pd.Series(pd.NaT, index=table.index, dtype="datetime64[us, UTC]")
    sensing = table["product_id"].astype(str).str.extract(r"_(\d{8}T\d{6})", expand=False)
    for texts in (table.get("timestamp"), sensing):
        for form in ("ISO8601", "mixed"):
            if texts is not None and times.isna().any():
                unknown = texts[times.isna()]
                read = pd.to_datetime(unknown, format=form, utc=True, errors="coerce")
                times.loc[unknown.index] = read.astype("datetime64[us, UTC]")
    return times


def _parts(folder: str, url: str) -> set[str] | None:
    """Names of the archive's own image files; None where it cannot list but has the first."""
    images = join(folder, "images")
    names = set(names_if_listed(images))
    first = url.rpartition("/")[2]
    if not names and not is_local(folder) and is_file(join(images, first)):
        return None
    return names


def _locate(url: str, folder: str, parts: set[str] | None) -> str:
    # metadata.parquet names files where they were published; a copy in the archive is preferred.
    name = url.rpartition("/")[2]
    scheme, _, rest = folder.partition("://")
    own = f"{scheme}://{rest.partition('/')[0]}/"
    if parts is None or name in parts or not url.startswith((*_PUBLISHED, own)):
        return join(folder, "images", name)
    return url

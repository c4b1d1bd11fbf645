"""Shards to a dataset: the index, the fingerprint and, last, the manifest."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.folder import remove_halves
from terrafm.data.shards.index import Index, fingerprint, head_of, write_index
from terrafm.data.shards.manifest import (
    BandStatistics,
    CellGroup,
    Manifest,
    StoredFile,
    manifest_name,
    read_manifest,
)
from terrafm.data.shards.scratch import publish, scratch_file
from terrafm.errors import TerraFMError
from terrafm.storage import exists, join, write_bytes
from terrafm.storage.parquet import TableFile


def commit_dataset(
    dataset_uri: str,
    entries: Iterable[ShardEntry],
    *,
    tile_size: int,
    gsd: int,
    groups: Sequence[CellGroup],
    statistics: Mapping[str, Mapping[str, Any]],
    legend: Mapping[int, str],
    report: Mapping[str, Any],
) -> Manifest:
    """Makes the shards a dataset: writes the index and, last, the manifest.

    A commit with the fingerprint of the present version keeps its number, another content makes
    the next version.

    Args:
        dataset_uri: the dataset's folder.
        entries: all shards of this version, in any order.
        tile_size: side of a tile at the finest GSD, pixels.
        gsd: finest ground sampling distance, metres.
        groups: all cell groups of the dataset.
        statistics: modality -> {"bands", "mean", "std"}, in model band order, physical units.
        legend: land-cover code -> name.
        report: what ingest counted and decided; JSON-able.

    Raises:
        TerraFMError: no tiles at all, or a tile id that occurs twice.
    """
    kept = sorted((entry for entry in entries if entry.bytes), key=lambda entry: entry.name)
    if not kept:
        raise TerraFMError(f"no usable tile for dataset {dataset_uri}: nothing was committed")
    tables = [entry.rows for entry in kept]
    order = _order(kept, dataset_uri)
    bands = {name: BandStatistics.model_validate(dict(s)) for name, s in statistics.items()}
    described = {name: s.model_dump(mode="json") for name, s in bands.items()}
    head = head_of(groups, tile_size, gsd, described, legend)
    previous = read_manifest(dataset_uri) if exists(join(dataset_uri, manifest_name())) else None
    next_version = previous.version + 1 if previous else 1
    with scratch_file(join(dataset_uri, _index_name(next_version))) as scratch:
        write_index(scratch, tables, order)
        found = fingerprint(Index(TableFile(scratch), str(scratch)), head)
        version = next_version
        if previous and previous.fingerprint == found:
            version = previous.version
        size = scratch.stat().st_size
        with scratch.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        publish(scratch, join(dataset_uri, _index_name(version)))
    land_cover = np.concatenate([table["land_cover"].to_numpy() for table in tables])
    codes, counts = np.unique(land_cover, return_counts=True)
    manifest = Manifest(
        version=version,
        fingerprint=found,
        tiles=len(order),
        tile_size=tile_size,
        gsd=gsd,
        groups=tuple(groups),
        statistics=bands,
        legend=dict(legend),
        class_counts={int(c): int(n) for c, n in zip(codes, counts, strict=True)},
        index=StoredFile(name=_index_name(version), tiles=len(order), bytes=size, sha256=digest),
        shards=tuple(
            StoredFile(name=e.path, tiles=e.rows.num_rows, bytes=e.bytes, sha256=e.sha256)
            for e in kept
        ),
        report=dict(report),
    )
    for name in (manifest_name(version), manifest_name()):
        write_bytes(join(dataset_uri, name), manifest.to_json().encode())
    remove_halves(dataset_uri)
    return manifest


def _index_name(version: int) -> str:
    return f"index-{version}.parquet"


def _order(entries: Sequence[ShardEntry], dataset_uri: str) -> NDArray[np.int64]:
    """Row numbers, counted through all shards, in the order of the tile ids.

    Raises:
        TerraFMError: an id occurs twice.
    """
    ids = pa.chunked_array(
        [chunk for e in entries for chunk in e.rows["tile_id"].cast(pa.large_string()).chunks]
    ).combine_chunks()
    order = pc.sort_indices(ids)
    ordered = ids.take(order)
    first = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if first >= 0:
        ends = np.cumsum([entry.rows.num_rows for entry in entries])
        places = np.searchsorted(ends, order.to_numpy()[first : first + 2], side="right")
        shards = [entries[place].path for place in places]
        raise TerraFMError(
            f"dataset {dataset_uri}: tile {ordered[first].as_py()} occurs twice, in {shards[0]} "
            f"and {shards[1]}; tile ids must be unique"
        )
    rows: NDArray[np.int64] = order.to_numpy().astype(np.int64)
    return rows

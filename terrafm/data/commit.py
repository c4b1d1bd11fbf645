"""Shards to a dataset: the index, the fingerprint and, last, the manifest."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrafm.data.entry import ShardEntry
from terrafm.data.manifest import (
    BandStatistics,
    CellGroup,
    Manifest,
    StoredFile,
    manifest_name,
    read_manifest,
)
from terrafm.errors import TerraFMError
from terrafm.storage import exists, join, list_names, remove, write_bytes


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
    table = pa.concat_tables([entry.rows for entry in kept]).sort_by("tile_id").combine_chunks()
    _refuse_duplicates(table, dataset_uri)
    bands = {name: BandStatistics.model_validate(dict(s)) for name, s in statistics.items()}
    fingerprint = _fingerprint(table, groups, tile_size, gsd, bands, legend)
    version = 1
    if exists(join(dataset_uri, manifest_name())):
        previous = read_manifest(dataset_uri)
        version = previous.version + (previous.fingerprint != fingerprint)

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=["shard", "crs"])
    index_bytes = buffer.getvalue()
    index = StoredFile(
        name=f"index-{version}.parquet",
        tiles=table.num_rows,
        bytes=len(index_bytes),
        sha256=hashlib.sha256(index_bytes).hexdigest(),
    )
    codes, counts = np.unique(table["land_cover"].to_numpy(), return_counts=True)
    manifest = Manifest(
        version=version,
        fingerprint=fingerprint,
        tiles=table.num_rows,
        tile_size=tile_size,
        gsd=gsd,
        groups=tuple(groups),
        statistics=bands,
        legend=dict(legend),
        class_counts={int(c): int(n) for c, n in zip(codes, counts, strict=True)},
        index=index,
        shards=tuple(
            StoredFile(name=e.path, tiles=e.rows.num_rows, bytes=e.bytes, sha256=e.sha256)
            for e in kept
        ),
        report=dict(report),
    )
    write_bytes(join(dataset_uri, index.name), index_bytes)
    for name in (manifest_name(version), manifest_name()):
        write_bytes(join(dataset_uri, name), manifest.to_json().encode())
    # Writers that were killed leave hidden files behind; no reader ever opens them.
    for name in list_names(join(dataset_uri, "shards")):
        if name.startswith("."):
            remove(join(dataset_uri, "shards", name))
    return manifest


def _refuse_duplicates(table: pa.Table, dataset_uri: str) -> None:
    ids = table["tile_id"].chunk(0) if table.num_rows else pa.array([], pa.string())
    repeated = pc.equal(ids[1:], ids[:-1])
    first = pc.index(repeated, True).as_py()
    if first >= 0:
        raise TerraFMError(
            f"dataset {dataset_uri}: tile {ids[first].as_py()} occurs twice, in "
            f"{table['shard'][first].as_py()} and {table['shard'][first + 1].as_py()}; "
            "tile ids must be unique"
        )


def _fingerprint(
    table: pa.Table,
    groups: Sequence[CellGroup],
    tile_size: int,
    gsd: int,
    statistics: Mapping[str, BandStatistics],
    legend: Mapping[int, str],
) -> str:
    head = {
        "tile_size": tile_size,
        "gsd": gsd,
        "groups": [[g.name, list(g.shape), list(g.bands)] for g in groups],
        "statistics": {name: s.model_dump(mode="json") for name, s in statistics.items()},
        "legend": {str(code): name for code, name in legend.items()},
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in table.column_names:
        # Where a cell lies is layout, what it holds is content.
        if name == "shard" or name.endswith(".offset"):
            continue
        column = table[name]
        digest.update(name.encode())
        if pa.types.is_string(column.type):
            digest.update("\0".join(column.to_pylist()).encode())
        else:
            digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()

"""The writing side of a dataset: Parquet shards, their index, the manifest.

A shard is an ordinary Parquet file with one tile per row group and one binary column per cell
group (modality and GSD). The columns are PLAIN, uncompressed and without dictionary, so that a
cell's bytes lie in the file as they are: the index keeps their offset, and reading a random tile
is one range read that needs no Parquet footer.

    DATASET/manifest.json             newest version, written last
    DATASET/manifest-1.json           the same per version, never changed
    DATASET/index-1.parquet           one row per tile, sorted by tile id: the tile's row number
    DATASET/shards/<name>.parquet
    DATASET/entries/<name>.arrow      index rows of one shard: lets an ingest that stopped go on

Nothing here depends on time or machine: the same tiles give the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm.data.shards.cells import CellReader
from terrafm.data.shards.codec import checksum, encode
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import TILE_FIELDS, ShardEntry, TileRecord, index_schema, shard_path
from terrafm.data.shards.manifest import CellGroup, Manifest
from terrafm.data.shards.scratch import publish, scratch_file
from terrafm.errors import TerraFMError
from terrafm.storage import file_size, join, to_json

__all__ = [
    "CellGroup",
    "CellReader",
    "Dataset",
    "Manifest",
    "ShardEntry",
    "TileRecord",
    "commit_dataset",
    "read_shard_entry",
    "write_shard",
]


def write_shard(
    dataset_uri: str,
    shard_name: str,
    records: Iterable[TileRecord],
    groups: Sequence[CellGroup],
    extra: Mapping[str, Any] | None = None,
) -> ShardEntry:
    """Writes one shard, then the entry that proves it complete; both are whole or invisible.

    Holds one tile in memory at a time. Without records no shard file is written, only the entry.

    Args:
        dataset_uri: the dataset's folder.
        shard_name: unique in the dataset; a shard of this name is replaced.
        records: the tiles, consumed once, in order.
        groups: all cell groups of the dataset.
        extra: kept in the entry; read after the last record, so that a generator of records may
            still fill it.

    Raises:
        TerraFMError: an array does not fit its group, or the file did not read back equal.
    """
    target = join(dataset_uri, shard_path(shard_name))
    with scratch_file(target) as scratch:
        rows, lengths, checksums = _write_parquet(scratch, records, groups)
        size, digest = 0, ""
        if rows:
            offsets = _cell_offsets(scratch, groups, lengths, checksums)
            for row, *cells in zip(rows, offsets, lengths, checksums, strict=True):
                for g, group in enumerate(groups):
                    row[f"{group.name}.offset"] = cells[0][g]
                    row[f"{group.name}.length"] = cells[1][g]
                    row[f"{group.name}.checksum"] = cells[2][g]
            size = scratch.stat().st_size
            with scratch.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            publish(scratch, target)
    table = pa.Table.from_pylist(
        [{"shard": shard_path(shard_name), **row} for row in rows], schema=index_schema(groups)
    )
    entry = ShardEntry(shard_name, size, digest, table, dict(extra or {}))
    entry.write(dataset_uri)
    return entry


def read_shard_entry(dataset_uri: str, shard_name: str) -> ShardEntry | None:
    """The entry of a shard that was written completely, or None: then it must be written (again).

    A shard whose file is missing or has another size than its entry says counts as not written.
    """
    entry = ShardEntry.read(dataset_uri, shard_name)
    if entry is None:
        return None
    if entry.bytes and file_size(join(dataset_uri, entry.path)) != entry.bytes:
        return None
    return entry


def _write_parquet(
    path: Path, records: Iterable[TileRecord], groups: Sequence[CellGroup]
) -> tuple[list[dict[str, Any]], list[list[int]], list[list[int]]]:
    columns = [
        pa.field(
            group.name,
            pa.binary(),
            metadata={
                "codec": group.codec,
                "dtype": group.dtype,
                "shape": json.dumps(group.shape),
                "bands": json.dumps(group.bands),
            },
        )
        for group in groups
    ]
    schema = pa.schema([*TILE_FIELDS, *columns])
    rows: list[dict[str, Any]] = []
    lengths: list[list[int]] = []
    checksums: list[list[int]] = []
    with pq.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        data_page_version="1.0",
        write_page_index=False,
    ) as writer:
        for record in records:
            cells = [_encode_cell(record, group) for group in groups]
            row = _tile_row(record)
            content = row | {g.name: c for g, c in zip(groups, cells, strict=True)}
            writer.write_table(pa.Table.from_pylist([content], schema=schema))
            rows.append(row)
            lengths.append([len(cell or b"") for cell in cells])
            checksums.append([checksum(cell or b"") for cell in cells])
    return rows, lengths, checksums


def _encode_cell(record: TileRecord, group: CellGroup) -> bytes | None:
    pixels = record.arrays.get(group.name)
    if pixels is None:
        return None
    if pixels.shape != group.shape or pixels.dtype != np.dtype(group.dtype):
        raise TerraFMError(
            f"tile {record.tile_id}: {group.name} is {pixels.dtype} {pixels.shape}, "
            f"not {group.dtype} {group.shape}"
        )
    return encode(pixels, group.codec)


def _tile_row(record: TileRecord) -> dict[str, Any]:
    histogram = {str(code): int(n) for code, n in sorted(record.histogram.items())}
    return {
        "tile_id": record.tile_id,
        "land_cover": int(record.land_cover),
        "histogram": json.dumps(histogram, separators=(",", ":")),
        "crs": record.crs,
        "transform": json.dumps([float(value) for value in record.transform]),
        "latitude": float(record.latitude),
        "longitude": float(record.longitude),
        "climate": int(record.climate),
        "place": record.place,
        "products": to_json(record.products, sort_keys=True),
    }


def _cell_offsets(
    path: Path,
    groups: Sequence[CellGroup],
    lengths: list[list[int]],
    checksums: list[list[int]],
) -> list[list[int]]:
    """Finds every cell in the file, and reads it back.

    A column chunk here is one data page, and a PLAIN binary page ends with its only value: the
    cell is the chunk's last `length` bytes.
    """
    footer = pq.read_metadata(path)
    columns = {footer.row_group(0).column(c).path_in_schema: c for c in range(footer.num_columns)}
    offsets: list[list[int]] = []
    with path.open("rb") as file:
        for row, (row_lengths, row_checksums) in enumerate(zip(lengths, checksums, strict=True)):
            found = []
            for group, length, expected in zip(groups, row_lengths, row_checksums, strict=True):
                chunk = footer.row_group(row).column(columns[group.name])
                end = chunk.data_page_offset + chunk.total_compressed_size
                offset = end - length if length else 0
                file.seek(offset)
                if checksum(file.read(length)) != expected:
                    raise TerraFMError(
                        f"{path}: row {row}, column {group.name} did not read back as written"
                    )
                found.append(offset)
            offsets.append(found)
    return offsets

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
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm.data.codec import CODEC, checksum, encode
from terrafm.data.dataset import CellReader, Dataset
from terrafm.data.manifest import (
    BandStatistics,
    CellGroup,
    Manifest,
    StoredFile,
    manifest_name,
    read_manifest,
)
from terrafm.errors import TerraFMError
from terrafm.storage import (
    exists,
    is_local,
    join,
    list_names,
    read_bytes,
    remove,
    resolve,
    write_bytes,
)

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

_TILE_FIELDS = [
    pa.field("tile_id", pa.string(), nullable=False),
    pa.field("land_cover", pa.int32(), nullable=False),
    pa.field("histogram", pa.string(), nullable=False),
    pa.field("crs", pa.string(), nullable=False),
    pa.field("transform", pa.string(), nullable=False),
    pa.field("latitude", pa.float64(), nullable=False),
    pa.field("longitude", pa.float64(), nullable=False),
    pa.field("products", pa.string(), nullable=False),
]


@dataclass
class TileRecord:
    """One tile as ingest hands it over.

    Attributes:
        tile_id: unique and stable name, such as "0U_199R_1_0".
        arrays: cell group name -> (bands, h, w) storage integers; absent modalities are left out.
        land_cover: code of the majority class.
        histogram: land-cover code -> pixels.
        crs: coordinate system as an authority string.
        transform: affine coefficients (a, b, c, d, e, f) of the tile's finest grid.
        latitude: of the tile's centre, degrees.
        longitude: of the tile's centre, degrees.
        products: modality -> product id, time and the decisions made; JSON-able.
    """

    tile_id: str
    arrays: dict[str, NDArray[Any]]
    land_cover: int
    histogram: dict[int, int]
    crs: str
    transform: tuple[float, float, float, float, float, float]
    latitude: float
    longitude: float
    products: dict[str, dict[str, Any]]


@dataclass
class ShardEntry:
    """A finished shard: its proof of wholeness and its rows of the index.

    Attributes:
        name: shard name, without folder and suffix.
        bytes: size of the file; 0 for a shard without tiles, which has no file.
        sha256: of the file.
        rows: one index row per tile.
        extra: whatever ingest wants back with the shard (sums, quarantine); JSON-able.
    """

    name: str
    bytes: int
    sha256: str
    rows: pa.Table
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """File name inside the dataset."""
        return shard_path(self.name)


def shard_path(name: str) -> str:
    """Path of a shard inside its dataset."""
    return f"shards/{name}.parquet"


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
    with _scratch_file(target) as scratch:
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
            _publish(scratch, target)
    table = pa.Table.from_pylist(
        [{"shard": shard_path(shard_name), **row} for row in rows], schema=index_schema(groups)
    )
    entry = ShardEntry(shard_name, size, digest, table, dict(extra or {}))
    write_bytes(_entry_uri(dataset_uri, shard_name), _entry_bytes(entry))
    return entry


def read_shard_entry(dataset_uri: str, shard_name: str) -> ShardEntry | None:
    """The entry of a shard that was written completely, or None: then it must be written (again).

    A shard whose file is missing or has another size than its entry says counts as not written.
    """
    try:
        content = read_bytes(_entry_uri(dataset_uri, shard_name))
        table = pa.ipc.open_file(content).read_all()
        head = json.loads(table.schema.metadata[b"entry"])
        rows = table.replace_schema_metadata(None)
        entry = ShardEntry(head["name"], head["bytes"], head["sha256"], rows, head["extra"])
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    if entry.bytes:
        filesystem, path = resolve(join(dataset_uri, entry.path))
        if not filesystem.exists(path) or filesystem.size(path) != entry.bytes:
            return None
    return entry


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


def index_schema(groups: Sequence[CellGroup]) -> pa.Schema:
    """Columns of the index: where a tile lies, what it shows, and its cells' byte ranges."""
    cells = []
    for group in groups:
        cells += [
            pa.field(f"{group.name}.offset", pa.int64(), nullable=False),
            pa.field(f"{group.name}.length", pa.int64(), nullable=False),
            pa.field(f"{group.name}.checksum", pa.uint32(), nullable=False),
        ]
    return pa.schema([pa.field("shard", pa.string(), nullable=False), *_TILE_FIELDS, *cells])


def _write_parquet(
    path: Path, records: Iterable[TileRecord], groups: Sequence[CellGroup]
) -> tuple[list[dict[str, Any]], list[list[int]], list[list[int]]]:
    columns = [
        pa.field(
            group.name,
            pa.binary(),
            metadata={
                "codec": CODEC,
                "dtype": group.dtype,
                "shape": json.dumps(group.shape),
                "bands": json.dumps(group.bands),
            },
        )
        for group in groups
    ]
    schema = pa.schema([*_TILE_FIELDS, *columns])
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
    return encode(pixels)


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
        "products": json.dumps(record.products, sort_keys=True),
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


@contextmanager
def _scratch_file(target: str) -> Iterator[Path]:
    # On a disk the neighbour of the target, so that publishing it is a rename.
    if is_local(target):
        final = Path(resolve(target)[1])
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    else:
        scratch = Path(tempfile.gettempdir()) / f"terrafm-{uuid.uuid4().hex}.parquet"
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _publish(scratch: Path, target: str) -> None:
    filesystem, path = resolve(target)
    if is_local(target):
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    else:
        filesystem.put_file(str(scratch), path)


def _entry_uri(dataset_uri: str, shard_name: str) -> str:
    return join(dataset_uri, "entries", f"{shard_name}.arrow")


def _entry_bytes(entry: ShardEntry) -> bytes:
    head = {
        "name": entry.name,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "extra": entry.extra,
    }
    table = entry.rows.replace_schema_metadata({"entry": json.dumps(head, sort_keys=True)})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


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

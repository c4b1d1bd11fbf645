"""One shard held against its line of the manifest and its rows of the index."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm.data.shards.entry import check_rows
from terrafm.data.shards.manifest import CellGroup, StoredFile
from terrafm.storage import file_size, join, open_file, read_range
from terrafm.storage.faults import one_line
from terrafm.storage.parquet import TableFile

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, order=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
        shard: file inside the dataset.
        tile: tile id, "" where the fault is of the whole file.
        cell: cell group, "" where the fault is of the whole tile or file.
        why: what is wrong with it.
    """

    shard: str
    tile: str
    cell: str
    why: str


@dataclass
class _Cell:
    start: int
    stop: int
    expected: int
    tile: str
    group: str
    crc: int = 0
    seen: int = 0


def check_shard(
    uri: str, shard: StoredFile, rows: pa.Table, groups: Sequence[CellGroup]
) -> list[Fault]:
    """Reads a shard once and compares it.

    Args:
        uri: the dataset's folder.
        shard: its line of the manifest.
        rows: its rows of the index: tile_id, and offset, length and checksum per cell group.
        groups: all cell groups of the dataset.

    Raises:
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    where = join(uri, shard.name)
    try:
        size = file_size(where)
        if size is None:
            return [Fault(shard.name, "", "", "is missing")]
        faults = [] if size == shard.bytes else [_wrong_size(shard, size)]
        cells = _cells(rows, groups)
        digest = _read(where, size, cells)
        faults += _cell_faults(shard, cells)
        if size == shard.bytes:
            faults += _structure_faults(where, shard, rows, groups)
            if digest != shard.sha256 and not faults:
                why = "does not match its SHA-256, though all of its cells are whole"
                faults.append(Fault(shard.name, "", "", why))
    except OSError as error:
        return [Fault(shard.name, "", "", f"cannot be read: {error}")]
    return faults


def read_blocks(uri: str, size: int) -> Iterator[bytes]:
    """A file in blocks of 16 MiB, each by one range request."""
    for start in range(0, size, _BLOCK_BYTES):
        yield read_range(uri, start, min(start + _BLOCK_BYTES, size))


def _wrong_size(shard: StoredFile, size: int) -> Fault:
    how = "is cut short" if size < shard.bytes else "is too long"
    return Fault(shard.name, "", "", f"{how}: {size} bytes, written with {shard.bytes}")


def _cells(rows: pa.Table, groups: Sequence[CellGroup]) -> list[_Cell]:
    ids = rows["tile_id"].to_pylist()
    cells = []
    for group in groups:
        columns = [
            rows[f"{group.name}.{part}"].to_pylist() for part in ("offset", "length", "checksum")
        ]
        for tile, offset, length, crc in zip(ids, *columns, strict=True):
            if length:
                cells.append(_Cell(offset, offset + length, crc, tile, group.name))
    return sorted(cells, key=lambda cell: cell.start)


def _read(where: str, size: int, cells: list[_Cell]) -> str:
    """Fills in the cells' checksums; returns the file's SHA-256."""
    digest = hashlib.sha256()
    position, first = 0, 0
    for block in read_blocks(where, size):
        digest.update(block)
        view, end = memoryview(block), position + len(block)
        for cell in cells[first:]:
            if cell.start >= end:
                break
            part = view[max(0, cell.start - position) : max(0, cell.stop - position)]
            cell.crc = zlib.crc32(part, cell.crc)
            cell.seen += len(part)
        while first < len(cells) and cells[first].stop <= end:
            first += 1
        position = end
    return digest.hexdigest()


def _cell_faults(shard: StoredFile, cells: list[_Cell]) -> Iterator[Fault]:
    for cell in cells:
        if cell.seen < cell.stop - cell.start:
            yield Fault(shard.name, cell.tile, cell.group, "is cut short, or lies past the end")
        elif cell.crc != cell.expected:
            why = f"does not match its CRC-32 (bytes {cell.start} to {cell.stop})"
            yield Fault(shard.name, cell.tile, cell.group, why)


def _structure_faults(
    where: str, shard: StoredFile, rows: pa.Table, groups: Sequence[CellGroup]
) -> Iterator[Fault]:
    """Whether the Parquet file itself has the tiles and cells of the index, at its offsets."""
    try:
        with open_file(where) as file:
            parquet = TableFile(file)
            ids = _tile_ids(parquet)
            footer = parquet.metadata
            places = [_places(footer, row) for row in range(footer.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError) as error:
        why = one_line(error)
        yield Fault(shard.name, "", "", f"its Parquet structure cannot be read: {why}")
        return
    indexed = {row["tile_id"]: row for row in rows.to_pylist()}
    for tile in sorted(set(ids) - set(indexed)):
        yield Fault(shard.name, tile, "", "is in the shard, but not in the index")
    for tile in sorted(set(indexed) - set(ids)):
        yield Fault(shard.name, tile, "", "is in the index, but not in the shard")
    for tile, ends in zip(ids, places, strict=False):
        for group in groups if tile in indexed else ():
            row = indexed[tile]
            stop = row[f"{group.name}.offset"] + row[f"{group.name}.length"]
            if row[f"{group.name}.length"] and stop != ends.get(group.name):
                why = f"ends at byte {ends.get(group.name)}, by the index at {stop}"
                yield Fault(shard.name, tile, group.name, why)


def _tile_ids(parquet: pq.ParquetFile) -> list[str]:
    found = parquet.schema_arrow.get_all_field_indices("tile_id")
    if [parquet.schema_arrow.field(at).type for at in found] != [pa.string()]:
        raise ValueError("it has not one column tile_id of text")
    rows = parquet.read(columns=["tile_id"], use_threads=False)
    check_rows(rows)
    ids: list[str] = rows["tile_id"].to_pylist()
    return ids


def _places(footer: Any, row: int) -> dict[str, int]:
    """Where each column's only value of a row ends, bytes."""
    columns = [footer.row_group(row).column(c) for c in range(footer.num_columns)]
    return {
        column.path_in_schema: column.data_page_offset + column.total_compressed_size
        for column in columns
    }

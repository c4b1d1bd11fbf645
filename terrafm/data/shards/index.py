"""The index of a dataset: one row per tile, read from its Parquet file when it is asked for.

Rows are sorted by tile id and lie in row groups. What a plan needs are a few columns of numbers;
where a tile lies is looked up by row group. So a dataset of millions of tiles opens in a moment,
and its ids, places and product notes never lie in memory all at once.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm.data.shards.entry import PLACE, check_rows, check_schema
from terrafm.data.shards.manifest import CellGroup, StoredFile
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import download, is_local, join, read_bytes, resolve
from terrafm.storage.faults import one_line
from terrafm.storage.local import check_regular
from terrafm.storage.parquet import TableFile

ROWS_PER_GROUP = 65_536
# Row groups kept for look-ups: about 12 MB each for all places of a full set of sensors.
_KEPT_GROUPS = 16
# Up to this size an index is read and hashed as a whole; a larger file on a disk is held to the
# checksums of its pages, as they are read.
_WHOLE_BYTES = 64 << 20


class Index:
    """Rows and columns of an index file.

    Args:
        file: the open Parquet file.
        where: URI of it, for messages.
    """

    def __init__(self, file: TableFile, where: str) -> None:
        self.where = where
        self._file = file
        # Parquet readers are not made for several threads.
        self._lock = threading.Lock()
        footer = file.metadata
        sizes = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._kept = lru_cache(maxsize=_KEPT_GROUPS)(self._read)
        # Notes on tiles are ten times as large as their places.
        self._kept_notes = lru_cache(maxsize=1)(self._read)

    @classmethod
    def open(
        cls, dataset_uri: str, stored: StoredFile, groups: Sequence[CellGroup] | None = None
    ) -> "Index":
        """Opens the index of a version, checked against its manifest.

        Args:
            dataset_uri: the dataset's folder.
            stored: what the manifest says of the file.
            groups: the manifest's cell groups, for which the columns are held against the schema.

        Raises:
            UsageError: missing, unreadable, or not what the manifest says.
        """
        where = join(dataset_uri, stored.name)
        try:
            source, whole = _source(where, stored)
            file = TableFile(source, page_checksum_verification=True) if whole else None
        except (OSError, ValueError) as error:
            raise _unreadable(where, error) from None
        if file is None or file.metadata.num_rows != stored.tiles:
            raise UsageError(f"{where} does not match the manifest: restore it or ingest again")
        try:
            if groups is not None:
                check_schema(file.schema_arrow, groups)
        except ValueError as error:
            raise _unreadable(where, error) from None
        index = cls(file, where)
        if len(index) and not np.diff(index._starts).all():
            raise _unreadable(where, ValueError("it has a row group without rows"))
        return index

    @classmethod
    def of_table(cls, table: pa.Table) -> "Index":
        """An index in memory, from rows that are sorted by tile id."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return cls(TableFile(pa.BufferReader(sink.getvalue())), "the index in memory")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def column_names(self) -> list[str]:
        """Names of all columns."""
        return list(self._file.schema_arrow.names)

    def column(self, name: str) -> NDArray[Any]:
        """(N,) one column of all rows."""
        parts = [chunk[name].to_numpy() for chunk in self.chunks([name])]
        values: NDArray[Any] = np.concatenate(parts) if parts else np.empty(0)
        return values

    def chunks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, one row group after the other."""
        for group in range(len(self._starts) - 1):
            yield self._read(group, tuple(names))

    def table(self) -> pa.Table:
        """Everything, in memory."""
        return pa.concat_tables(self.chunks(self.column_names)).combine_chunks()

    def take(
        self, rows: Sequence[int] | NDArray[np.integer[Any]], names: Sequence[str]
    ) -> pa.Table:
        """Some columns of some rows, in the order of `rows`.

        Raises:
            IndexError: there is no such row.
            TerraFMError: the index is damaged.
        """
        return self._take(self._kept, rows, tuple(names))

    def notes(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Some columns of one row, not kept for later.

        Raises:
            IndexError, TerraFMError: as `take`.
        """
        values: dict[str, Any] = self._take(self._kept_notes, [row], tuple(names)).to_pylist()[0]
        return values

    def find(self, tile_ids: Sequence[str]) -> NDArray[np.int64]:
        """(n,) row of each tile id; -1 where there is none."""
        firsts = self._first_ids()
        found = np.full(len(tile_ids), -1, dtype=np.int64)
        wanted = np.asarray(tile_ids, dtype=object)
        groups = np.searchsorted(firsts, wanted, side="right") - 1
        for group in np.unique(groups[groups >= 0]).tolist():
            here = np.flatnonzero(groups == group)
            ids = self._kept(group, ("tile_id",))["tile_id"].to_numpy()
            places = np.minimum(np.searchsorted(ids, wanted[here]), len(ids) - 1)
            same = ids[places] == wanted[here]
            found[here[same]] = self._starts[group] + places[same]
        return found

    def near(self, tile_id: str) -> list[str]:
        """Ids of the row group in which a tile of this id would lie."""
        group = int(np.searchsorted(self._first_ids(), tile_id, side="right")) - 1
        ids: list[str] = self._kept(max(0, group), ("tile_id",))["tile_id"].to_pylist()
        return ids

    def _first_ids(self) -> NDArray[np.object_]:
        footer = self._file.metadata
        column = self.column_names.index("tile_id")
        found = [
            footer.row_group(g).column(column).statistics for g in range(len(self._starts) - 1)
        ]
        firsts = []
        for group, one in enumerate(found):
            # Not every writer leaves them.
            stated = one is not None and one.has_min_max
            rows = None if stated else self._kept(group, ("tile_id",))["tile_id"]
            firsts.append(one.min if rows is None else rows[0].as_py())
        return np.array(firsts, dtype=object)

    def _take(
        self, read: Any, rows: Sequence[int] | NDArray[np.integer[Any]], names: tuple[str, ...]
    ) -> pa.Table:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows of {self.where} go from 0 to {len(self) - 1}")
        if len(wanted) == 0:
            return self._file.schema_arrow.empty_table().select(list(names))
        return _gather(self._starts, wanted, lambda group: read(group, names))

    def _read(self, group: int, names: tuple[str, ...]) -> pa.Table:
        try:
            with self._lock:
                table = self._file.read_row_group(group, columns=list(names))
            check_rows(table)
            stated = int(self._starts[group + 1] - self._starts[group])
            if table.num_rows != stated:
                raise ValueError(f"row group {group} has {table.num_rows} of {stated} rows")
        except (OSError, pa.ArrowException, ValueError) as error:
            why = one_line(error)
            raise TerraFMError(
                f"{self.where} is damaged ({why}): restore it or ingest again"
            ) from None
        return table.select(list(names))


def _unreadable(where: str, error: Exception) -> UsageError:
    return UsageError(
        f"cannot read the dataset's index {where}: {one_line(error)}: restore it or ingest again"
    )


def write_index(
    path: str | os.PathLike[str], tables: Sequence[pa.Table], order: NDArray[np.integer[Any]]
) -> None:
    """Writes the rows of some tables, in an order, as an index file.

    Gathers a row group at a time: the tables together may be larger than an Arrow column of
    strings can be, and are not copied.

    Args:
        path: local file.
        tables: rows of one schema, such as those of each shard.
        order: (N,) numbers of all rows, counted through the tables.
    """
    starts = np.concatenate([[0], np.cumsum([table.num_rows for table in tables])])
    with pq.ParquetWriter(
        path,
        tables[0].schema,
        compression="zstd",
        use_dictionary=["shard", "crs"],
        write_page_checksum=True,
    ) as writer:
        for start in range(0, len(order), ROWS_PER_GROUP):
            rows = order[start : start + ROWS_PER_GROUP]
            writer.write_table(_gather(starts, rows, tables.__getitem__), ROWS_PER_GROUP)


def _gather(
    starts: NDArray[np.int64],
    rows: NDArray[np.integer[Any]],
    table_of: Callable[[int], pa.Table],
) -> pa.Table:
    """Rows by their number in the concatenation of some tables, in the order asked for."""
    place = np.searchsorted(starts, rows, side="right") - 1
    by_table = np.argsort(place, kind="stable")
    bounds = np.flatnonzero(np.diff(place[by_table])) + 1
    pieces = []
    for part in np.split(by_table, bounds):
        number = int(place[part[0]])
        pieces.append(table_of(number).take(pa.array(rows[part] - starts[number])))
    if len(pieces) == 1:
        return pieces[0]
    inverse = np.empty_like(by_table)
    inverse[by_table] = np.arange(len(by_table))
    return pa.concat_tables(pieces).take(pa.array(inverse)).combine_chunks()


def fingerprint(index: Index, head: Mapping[str, Any]) -> str:
    """SHA-256 of a dataset's content: `head`, and all of its index but where the cells lie."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in index.column_names:
        # Where a cell lies is layout, what it holds is content.
        if name != "shard" and not name.endswith(".offset"):
            if name == PLACE and not any(index.column(name)):
                # Nor does an empty column make another content of what earlier versions wrote.
                continue
            digest.update(name.encode())
            for part in _column_bytes(chunk[name] for chunk in index.chunks([name])):
                digest.update(part)
    return digest.hexdigest()


def head_of(
    groups: Sequence[CellGroup],
    tile_size: int,
    gsd: int,
    statistics: Mapping[str, Mapping[str, Any]],
    legend: Mapping[int, str],
) -> dict[str, Any]:
    """What a fingerprint covers besides the index."""
    return {
        "tile_size": tile_size,
        "gsd": gsd,
        "groups": [[g.name, list(g.shape), list(g.bands)] for g in groups],
        "statistics": dict(statistics),
        "legend": {str(code): name for code, name in legend.items()},
    }


def _column_bytes(chunks: Iterable[pa.ChunkedArray]) -> Iterator[bytes]:
    separator = b""
    for chunk in chunks:
        if pa.types.is_string(chunk.type):
            yield separator + "\0".join(chunk.to_pylist()).encode()
            separator = b"\0"
        else:
            yield np.ascontiguousarray(chunk.to_numpy()).tobytes()


def _source(where: str, stored: StoredFile) -> tuple[Any, bool]:
    """What Arrow reads the index from, and whether it is whole as far as that is known now.

    Never a Python file: Arrow's threads may hold it when Python ends, and abort.
    """
    if stored.bytes <= _WHOLE_BYTES:
        content = read_bytes(where)
        return pa.BufferReader(content), hashlib.sha256(content).hexdigest() == stored.sha256
    if is_local(where):
        path = resolve(where)[1]
        check_regular(path)
        return pa.OSFile(path), os.path.getsize(path) == stored.bytes
    # One request after the other for every column would take minutes: it is copied once.
    number, copy = tempfile.mkstemp(prefix="terrafm-index-")
    try:
        download(where, copy)
        with os.fdopen(number, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return pa.OSFile(copy), digest == stored.sha256
    finally:
        # The open file stays readable, and its space is given back with it.
        os.unlink(copy)

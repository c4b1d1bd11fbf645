"""Parquet and Arrow files from anyone, read as data and never as code.

A file names the types of its columns, and libraries register types of their own with Arrow, whose
values their code then makes. Ray Data's `ray.data.arrow_pickled_object` unpickles: to list such a
column runs what the file's author wrote. `ray.data.read_parquet` of Ray 2.60 refuses it
(ray-project/ray pull requests 63470 and 64881); with pyarrow, in a process that has imported Ray
Data, nobody does. None of our files needs such a type, so every file that is read goes through
here, and one that has any is refused.

A few bytes can stand for gigabytes: of zeros compressed, of one value that a dictionary has once,
of nulls. What is asked for is held against the file's bytes before it is decoded.
"""

import io
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import override

from terrafm.errors import TerraFMError
from terrafm.storage.claims import check_claim
from terrafm.storage.faults import one_line
from terrafm.storage.files import is_local, read_bytes, resolve
from terrafm.storage.limits import (
    HARMLESS_BYTES,
    PARQUET_CHUNKS,
    PARQUET_FOOTER_BYTES,
    TABLE_TIMES,
    WHOLE_FILE_BYTES,
)
from terrafm.storage.local import check_regular
from terrafm.storage.parquet_pages import Pages, read_pages
from terrafm.storage.seekable import Range, Seekable, joined

# Arrow reads so many of a file's last bytes first, and the footer by itself where it is longer.
_TAIL_BYTES = 64 << 10
_MARK_BYTES = 8
# Neighbouring columns come in one request, and with them what lies between them.
_GAP_BYTES = 1 << 20
# Definition and repetition levels, and an offset or a byte of a mask.
_OVERHEAD_BYTES = 8
# What an Arrow file begins with, and fields of its messages: `header` and `compression`.
_ARROW_MARK = b"ARROW1\0\0"
_HEADER, _COMPRESSION = 2, 3
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class TableFile:
    """An open Parquet file of anyone: what is read of it is bounded by the bytes that it has.

    Safe in several threads.

    Attributes:
        metadata: the footer.
        schema_arrow: names and types of the columns.
    """

    def __init__(self, source: Any, **options: Any) -> None:
        """Reads the footer.

        Args:
            source: a path on a disk, an open file of Arrow or of Python.
            options: of `pyarrow.parquet.ParquetFile`.

        Raises:
            OSError, pyarrow.ArrowException: it is missing, damaged, cut short, or could run code.
        """
        self._lock = threading.RLock()
        self._options = options
        self._source = _arrow_source(source)
        self._size = int(self._source.seek(0, io.SEEK_END) or self._source.tell())
        self._check_footer()
        try:
            self._file = pq.ParquetFile(self._source, **options)
        except pa.ArrowNotImplementedError as error:
            # A damaged footer names types that pyarrow does not know. Its error for those is no
            # ValueError, as its others are, and callers would not take the file for damaged.
            raise pa.ArrowInvalid(str(error)) from None
        self.metadata: pq.FileMetaData = self._file.metadata
        self.schema_arrow: pa.Schema = self._file.schema_arrow
        refuse_code(self.schema_arrow)
        if self.metadata.num_row_groups * self.metadata.num_columns > PARQUET_CHUNKS:
            raise pa.ArrowInvalid(f"it has more than {PARQUET_CHUNKS:,} parts of columns")
        self._pages: dict[tuple[int, int], Pages] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close(force=True)
        self._source.close()

    def read(self, columns: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
        """Some columns of all rows; all columns by default.

        Raises:
            OSError, pyarrow.ArrowException: they are damaged, or larger than the file can hold.
        """
        return self._read(range(self.metadata.num_row_groups), columns, use_threads)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """As `read`, of one row group."""
        return self._read([group], columns, True)

    def _read(
        self, groups: Sequence[int], columns: Sequence[str] | None, use_threads: bool
    ) -> pa.Table:
        with self._lock:
            leaves = self._leaves(columns)
            with self._fetched(groups, leaves):
                coded = self._check_pages(groups, leaves)
                wanted = None if columns is None else list(columns)
                if not coded:
                    return self._file.read_row_groups(
                        list(groups), columns=wanted, use_threads=use_threads
                    )
                file = pq.ParquetFile(
                    self._source,
                    metadata=self.metadata,
                    read_dictionary=[self._path(leaf) for leaf in coded],
                    **self._options,
                )
                table = file.read_row_groups(list(groups), columns=wanted, use_threads=use_threads)
        # Each value stands once in the dictionaries: how often it stands in the rows counts.
        self._check(sum(_plain_bytes(c) for column in table.columns for c in column.chunks))
        return table.cast(pa.schema([self.schema_arrow.field(n) for n in table.column_names]))

    def _check_footer(self) -> None:
        start = max(0, self._size - _TAIL_BYTES)
        if isinstance(self._source, _Kept):
            self._source.fetch([(start, self._size)])
        mark = self._bytes(max(0, self._size - _MARK_BYTES), self._size)
        if int.from_bytes(mark[:4], "little") > PARQUET_FOOTER_BYTES:
            raise pa.ArrowInvalid(f"its footer claims more than {PARQUET_FOOTER_BYTES:,} bytes")

    def _leaves(self, columns: Sequence[str] | None) -> list[int]:
        everything = range(self.metadata.num_columns)
        if columns is None:
            return list(everything)
        # Names of columns may hold dots themselves.
        inside = tuple(f"{name}." for name in columns)
        return [n for n in everything if f"{self._path(n)}.".startswith(inside)] if inside else []

    def _path(self, leaf: int) -> str:
        return str(self.metadata.schema.column(leaf).path)

    def _check_pages(self, groups: Iterable[int], leaves: Sequence[int]) -> list[int]:
        """The columns whose size shows only when their dictionaries are read."""
        decoded = 0
        worst = dict.fromkeys(leaves, 0)
        for leaf in leaves:
            column = self.metadata.schema.column(leaf)
            width = _WIDTHS.get(column.physical_type, max(0, column.length or 0))
            for group in groups:
                pages = self._pages_of(group, leaf)
                fixed = pages.values * (width + _OVERHEAD_BYTES)
                decoded += max(pages.decoded, fixed)
                if column.physical_type == "BYTE_ARRAY":
                    worst[leaf] += pages.values * pages.dictionary
        self._check(decoded)
        if decoded + sum(worst.values()) <= HARMLESS_BYTES:
            return []
        return [leaf for leaf, expanded in worst.items() if expanded]

    def _check(self, claimed: int) -> None:
        try:
            check_claim(claimed, self._size, "columns", usual=TABLE_TIMES)
        except ValueError as error:
            raise pa.ArrowInvalid(str(error)) from None

    def _pages_of(self, group: int, leaf: int) -> Pages:
        found = self._pages.get((group, leaf))
        if found is None:
            try:
                found = read_pages(self._bytes, *self._span(group, leaf))
            except ValueError as error:
                name = self._path(leaf)
                raise pa.ArrowInvalid(f"column {name}: {error}") from None
            self._pages[group, leaf] = found
        return found

    def _span(self, group: int, leaf: int) -> tuple[int, int]:
        chunk = self.metadata.row_group(group).column(leaf)
        if chunk.num_values == 0:
            # Then nothing is read, and its offsets may be nowhere.
            return 0, 0
        start = chunk.data_page_offset
        if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        stop = start + chunk.total_compressed_size
        if not 0 <= start <= stop <= self._size:
            raise pa.ArrowInvalid(f"column {chunk.path_in_schema} does not lie in the file")
        return start, stop

    def _bytes(self, start: int, stop: int) -> bytes:
        self._source.seek(start)
        content: bytes = self._source.read(stop - start)
        return content

    def _fetched(self, groups: Sequence[int], leaves: Sequence[int]) -> Any:
        if not isinstance(self._source, _Kept):
            return nullcontext()
        return self._source.keeping(self._span(g, leaf) for g in groups for leaf in leaves)


class _Kept(Seekable):
    """A file of Python, such as one of a store, of which some ranges are kept for who reads next.

    The pages of a column are looked through and then read: by one request.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(int(file.seek(0, io.SEEK_END)))
        self._file = file
        self._ranges: list[tuple[int, bytes]] = []

    @override
    def _bytes(self, start: int, stop: int) -> bytes:
        for first, content in self._ranges:
            if first <= start and stop <= first + len(content):
                return content[start - first : stop - first]
        return self._ask(start, stop)

    @override
    def close(self) -> None:
        self._ranges = []
        self._file.close()
        super().close()

    def fetch(self, spans: Iterable[Range]) -> None:
        """Reads some ranges, and keeps them beside the others."""
        wanted = joined(spans, _GAP_BYTES)
        self._ranges += [(start, self._ask(start, stop)) for start, stop in wanted]

    @contextmanager
    def keeping(self, spans: Iterable[Range]) -> Iterator[None]:
        """Keeps some ranges for as long as the block runs."""
        before = list(self._ranges)
        try:
            self.fetch(spans)
            yield
        finally:
            self._ranges = before

    def _ask(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        parts = []
        while start < stop and (part := self._file.read(stop - start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)


def _arrow_source(source: Any) -> Any:
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        check_regular(path)
        return pa.OSFile(path)
    return source if isinstance(source, pa.NativeFile) else _Kept(source)


def _plain_bytes(array: pa.Array) -> int:
    """Bytes of an array once the values of its dictionaries stand in each row."""
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0)
        each = pc.take(lengths, array.indices)
        return int(pc.sum(pc.cast(each, pa.int64())).as_py() or 0) + len(array) * _OVERHEAD_BYTES
    if isinstance(array, pa.StructArray):
        return sum(_plain_bytes(part) for part in array.flatten())
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray | pa.MapArray):
        return _plain_bytes(array.values) + len(array) * _OVERHEAD_BYTES
    return int(array.nbytes)


def open_parquet(uri: str, **options: Any) -> TableFile:
    """Opens a Parquet file at a URI so that only what is asked for travels: reads its footer.

    Elsewhere than on a disk nothing is read ahead: the footer says where the columns lie, and
    neighbouring ones come in one request.

    Raises:
        OSError, pyarrow.ArrowException: it is missing, damaged, cut short, or could run code.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        return TableFile(path, **options)
    return TableFile(filesystem.open(path, "rb", cache_type="none"), **options)


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a small Parquet file, which is fetched as a whole.

    Raises:
        TerraFMError: it is missing, damaged, cut short, could run code, or lacks a column.
    """
    try:
        file = TableFile(pa.BufferReader(read_bytes(uri, WHOLE_FILE_BYTES)))
        absent = sorted(set(columns or ()) - set(file.schema_arrow.names))
        if absent:
            raise pa.ArrowInvalid(f"no column {', '.join(absent)}")
        return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise TerraFMError(f"cannot read {uri}: {one_line(error)}") from None


def read_arrow(content: bytes) -> pa.Table:
    """The table of an Arrow file that is not compressed, so that it is no larger than its bytes.

    Raises:
        pyarrow.ArrowException: it is damaged, cut short, compressed, or could run code.
    """
    refuse_code(pa.ipc.open_file(content).schema)
    # As a stream, which such a file holds: its end could point to other batches than are seen.
    stream = pa.py_buffer(content)[len(_ARROW_MARK) :]
    for message in pa.ipc.MessageReader.open_stream(stream):
        if message.type not in ("schema", "record batch"):
            raise pa.ArrowInvalid(f"it has a {message.type}, as none of these files has")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise pa.ArrowInvalid("it is compressed, as none of these files is")
    reader = pa.ipc.open_stream(stream)
    refuse_code(reader.schema)
    table = reader.read_all()
    # Arrow itself trusts the lengths and offsets that it finds.
    table.validate(full=True)
    return table


def _is_compressed(metadata: bytes) -> bool:
    """Whether the batch of a message is: https://github.com/apache/arrow/blob/main/format."""

    def field(table: int, number: int) -> int | None:
        own = table - struct.unpack_from("<i", metadata, table)[0]
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", metadata, own)[0]:
            return None
        offset = struct.unpack_from("<H", metadata, own + entry)[0]
        return table + offset if offset else None

    def table_at(place: int | None) -> int:
        if place is None:
            raise pa.ArrowInvalid("a message of it has no content")
        return place + int(struct.unpack_from("<I", metadata, place)[0])

    try:
        batch = table_at(field(table_at(0), _HEADER))
        return field(batch, _COMPRESSION) is not None
    except struct.error as error:
        raise pa.ArrowInvalid(f"a message of it is damaged: {error}") from None


def refuse_code(schema: pa.Schema) -> None:
    """Refuses columns whose values are made by Python code, however deep they are nested.

    Raises:
        pyarrow.ArrowInvalid: there is one; a `ValueError` as well.
    """
    for field in schema:
        made_by = _python_type(field.type)
        if made_by is not None:
            raise pa.ArrowInvalid(
                f"column {field.name} is of the type {made_by}, which can run code when it is read"
            )


def _python_type(kind: pa.DataType) -> str | None:
    if isinstance(kind, pa.ExtensionType):
        return str(kind.extension_name)
    if isinstance(kind, pa.DictionaryType):
        return _python_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _python_type(kind.storage_type)
    inside = (_python_type(kind.field(number).type) for number in range(kind.num_fields))
    return next((name for name in inside if name is not None), None)

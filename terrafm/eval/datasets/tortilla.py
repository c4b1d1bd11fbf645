"""Tortilla files, in which GEO-Bench-2 comes: samples one after the other, their table at the end.

A sample is a tortilla inside the tortilla, with a table and files of its own. `tacoreader` names
files to GDAL, which opens any kind of them and follows what they name; here their bytes are read,
bounded, and whoever asks for them says what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from terrafm.errors import UsageError
from terrafm.storage import read_range
from terrafm.storage.faults import one_line
from terrafm.storage.limits import PARQUET_FOOTER_BYTES, SAMPLE_BYTES
from terrafm.storage.parquet import TableFile

SUFFIX = ".tortilla"
_MARKS = (b"#y", b"WX")
_HEADER = 18  # Mark, then offset and length of the table, little-endian, 8 bytes each.
_ID, _OFFSET, _LENGTH = "tortilla:id", "tortilla:offset", "tortilla:length"


@dataclass(frozen=True)
class Tortilla:
    """A table of samples, or of the files of one.

    Attributes:
        uri: of the file that holds it.
        start: of its first byte there.
        table: a row for each part, with `tortilla:id` and what else is known of it.
    """

    uri: str
    start: int
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def value(self, column: str, row: int = 0) -> Any:
        """One value of the table as Python has it.

        Raises:
            UsageError: no such column.
        """
        if column not in self.table.column_names:
            raise UsageError(f"{self.uri} has no column {column}")
        return self.table[column][row].as_py()

    def position(self, name: str) -> int | None:
        """Row of the part of that id."""
        ids = self.table[_ID].to_pylist()
        return ids.index(name) if name in ids else None

    def sample(self, row: int) -> Tortilla:
        """A part that is a tortilla itself.

        Raises:
            UsageError: it is none, or damaged.
        """
        return read_tortilla(self.uri, self._span(row)[0])

    def read(self, row: int) -> bytes:
        """A part that is a file; counted from the end where negative.

        Raises:
            UsageError: there is no such part, or it is larger than a sample's file can be.
        """
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise UsageError(f"{self.uri}: a sample of {len(self)} files has no file {row}")
        start, stop = self._span(row)
        if stop - start > SAMPLE_BYTES:
            raise UsageError(f"{self.uri}: a file of {stop - start:,} bytes is no sample's")
        content = read_range(self.uri, start, stop)
        if len(content) < stop - start:
            raise UsageError(f"{self.uri} is cut short")
        return content

    def _span(self, row: int) -> tuple[int, int]:
        start, length = self.value(_OFFSET, row), self.value(_LENGTH, row)
        if not isinstance(start, int) or not isinstance(length, int) or min(start, length) < 0:
            raise UsageError(f"{self.uri}: a part has no place")
        return self.start + start, self.start + start + length


def read_tortilla(uri: str, start: int = 0) -> Tortilla:
    """Reads the table of a tortilla.

    Args:
        uri: of the file.
        start: of the tortilla's first byte in it.

    Raises:
        UsageError: it is none, damaged, or claims more than a table can have.
    """
    try:
        header = read_range(uri, start, start + _HEADER)
        if header[:2] not in _MARKS or len(header) < _HEADER:
            raise ValueError("it is no tortilla")
        offset = int.from_bytes(header[2:10], "little")
        length = int.from_bytes(header[10:18], "little")
        # The whole table of a set of 20,000 samples takes about 1 MiB.
        if length > PARQUET_FOOTER_BYTES:
            raise ValueError(f"its table claims {length:,} bytes")
        content = read_range(uri, start + offset, start + offset + length)
        with TableFile(pa.BufferReader(content)) as file:
            table = file.read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {uri}: {one_line(error)}") from None
    missing = {_ID, _OFFSET, _LENGTH} - set(table.column_names)
    if missing:
        raise UsageError(f"{uri} has no column {', '.join(sorted(missing))}")
    return Tortilla(uri, start, table)

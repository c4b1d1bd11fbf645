"""What the pages of a Parquet file take once they are decoded, by their own headers.

The footer tells sizes as well, but nothing holds it to them: Arrow allocates and decompresses by
the header of each page. Arrow has no call that reads those, so they are read here, as far as
sizes go: Thrift's compact protocol and the `PageHeader` of parquet-format 2.12
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_FIRST_BLOCK, _LONGEST_HEADER = 1 << 10, 16 << 20
# Fields of PageHeader, and of the headers inside of it.
_KIND, _DECODED, _STORED = 1, 2, 3
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
_VALUES = 1
_ENCODING = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_DICTIONARY_KIND = 2
_DELTA_BYTE_ARRAY = 7

Header = Mapping[int, Any]


@dataclass(frozen=True)
class Pages:
    """The pages of a column chunk together.

    Attributes:
        decoded: their bytes once decompressed.
        values: that they hold, those that are null among them.
        dictionary: bytes of the dictionary that values may be indices of; 0 without one.
    """

    decoded: int
    values: int
    dictionary: int


def read_pages(read: Callable[[int, int], bytes], start: int, stop: int) -> Pages:
    """Walks through the pages of a column chunk.

    Args:
        read: gives the bytes of the file from one place to another, fewer where it ends before.
        start: of the chunk.
        stop: of the chunk.

    Raises:
        ValueError: they are damaged, or encoded in a way that bounds no sizes.
    """
    decoded = values = dictionary = 0
    while start < stop:
        header, length = _read_header(read, start, stop)
        here, stored = header.get(_DECODED), header.get(_STORED)
        if type(here) is not int or type(stored) is not int or min(here, stored) < 0:
            raise ValueError("the header of a page is damaged")
        kind = next((k for k in (_DATA, _DICTIONARY, _DATA_V2) if k in header), None)
        inner = header[kind] if kind is not None else {}
        if not isinstance(inner, dict) or type(inner.get(_VALUES, 0)) is not int:
            raise ValueError("the header of a page is damaged")
        decoded += here
        if kind == _DICTIONARY or header.get(_KIND) == _DICTIONARY_KIND:
            dictionary += here
        elif kind is not None:
            values += max(0, inner.get(_VALUES, 0))
            if inner.get(_ENCODING[kind]) == _DELTA_BYTE_ARRAY:
                raise ValueError("the encoding DELTA_BYTE_ARRAY is not read: a few bytes of it can "
                                 "stand for any number")  # fmt: skip
        start += length + stored
    return Pages(decoded, values, dictionary)


def _read_header(read: Callable[[int, int], bytes], start: int, stop: int) -> tuple[Header, int]:
    """The fields of the header at a place, and its length."""
    block = _FIRST_BLOCK
    while True:
        content = read(start, min(start + block, stop))
        try:
            compact = _Compact(content)
            return compact.struct(), compact.at
        except IndexError:
            # Statistics in it may be long.
            if len(content) < block or block >= _LONGEST_HEADER:
                raise ValueError("the header of a page is cut short") from None
            block *= 8


class _Compact:
    """Thrift's compact protocol, for numbers and what is nested; texts are passed over."""

    _DEEPEST = 8

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Fields by their numbers."""
        if depth > self._DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._whole()
            case 7:
                return self._pass(8)
            case 8:
                return self._pass(self._unsigned())
            case 12:
                return self.struct(depth + 1)
        # Lists, sets and maps: no header of a page has any.
        raise ValueError("the header of a page is damaged")

    def _byte(self) -> int:
        value = self._content[self.at]
        self.at += 1
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("the header of a page is damaged")

    def _whole(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _pass(self, length: int) -> None:
        self.at += length
        if self.at > len(self._content):
            raise IndexError

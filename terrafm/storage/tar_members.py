"""Members of a tar, wherever it lies: where each begins and ends, without unpacking any.

A tar has no directory: each header says how long its member is, and so where the next header lies.
On a disk that is a walk of reads of 512 bytes, in a store one small request for each member.
"""

from dataclasses import dataclass
from typing import Any

from terrafm.storage.files import read_range
from terrafm.storage.limits import SAMPLE_BYTES, TAR_MEMBERS
from terrafm.storage.seekable import open_file

_BLOCK = 512
# Of the header (POSIX.1-1988, ustar): name, size, checksum, type, prefix.
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _MAGIC, _PREFIX = 156, slice(257, 262), slice(345, 500)
_FILES = b"0\0"


class BadTarError(Exception):
    """A tar that cannot be read to its end, or a member of it; the text says why."""


@dataclass(frozen=True)
class TarMember:
    """A file in a tar.

    Attributes:
        name: inside the tar, for looking at; never a path to write to.
        start: first byte of its content.
        size: bytes.
    """

    name: str
    start: int
    size: int


def list_tar(uri: str) -> tuple[list[TarMember], BadTarError | None]:
    """The files of a tar in its order, and what ended the list too early.

    Raises:
        OSError: it cannot be opened.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    members: list[TarMember] = []
    with open_file(uri) as file:
        length = file.seek(0, 2)
        at = 0
        while True:
            file.seek(at)
            head = file.read(_BLOCK)
            if not head.strip(b"\0"):
                # Two empty blocks end a tar; many writers leave them out.
                return members, None
            try:
                member, regular = _parse(head, at)
                if at + _BLOCK + member.size > length:
                    raise BadTarError(f"it ends inside of {member.name[:80]!r}")
                if len(members) == TAR_MEMBERS:
                    raise BadTarError(f"it has more than {TAR_MEMBERS:,} members")
            except BadTarError as error:
                return members, error
            if regular:
                members.append(member)
            at = member.start + -(-member.size // _BLOCK) * _BLOCK


def read_tar_member(uri: str, member: TarMember) -> bytes:
    """The content of a member.

    Raises:
        BadTarError: it is longer than a sample may be, or cut short.
        OSError: the tar cannot be opened.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    if member.size > SAMPLE_BYTES:
        raise BadTarError(
            f"{member.name[:80]} has more than the {SAMPLE_BYTES:,} bytes that are read of it"
        )
    content = read_range(uri, member.start, member.start + member.size)
    if len(content) < member.size:
        raise BadTarError(f"{member.name[:80]} is cut short")
    return content


def _parse(head: bytes, at: int) -> tuple[TarMember, bool]:
    if len(head) < _BLOCK:
        raise BadTarError("it is cut short")
    blank = head[: _SUM.start] + b" " * 8 + head[_SUM.stop :]
    try:
        right = _octal(head[_SUM]) == sum(blank)
        size = _octal(head[_SIZE])
        name = _text(head[_NAME])
        if head[_MAGIC] == b"ustar" and (prefix := _text(head[_PREFIX])):
            name = f"{prefix}/{name}"
    except ValueError:
        right = False
    if not right:
        raise BadTarError(f"no header of a tar lies at byte {at:,}")
    return TarMember(name, at + _BLOCK, size), head[_TYPE] in _FILES


def _octal(field: bytes) -> int:
    # Base-256 sizes begin with 0x80: of members that are longer than 8 GiB.
    digits = field.strip(b" \0") or b"0"
    # A sign, which `int` takes as well, would lead backwards for ever.
    if not digits.isdigit():
        raise ValueError("no digits")
    return int(digits, 8)


def _text(field: Any) -> str:
    return bytes(field).partition(b"\0")[0].decode("utf-8", errors="replace")

"""Members of a zip, wherever it lies: listed once, read with bounds, never unpacked by their names.

What a stranger packed may claim anything: the directory, every member and what it unpacks to are
bounded before memory or disk is given for them.
"""

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any, cast

from typing_extensions import override

from terrafm.storage.claims import check_claim
from terrafm.storage.limits import DOCUMENT_BYTES, WHOLE_FILE_BYTES, ZIP_DIRECTORY_BYTES
from terrafm.storage.seekable import open_file

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 0x1
_CHUNK = 1 << 18


class BadZipError(Exception):
    """A zip that cannot be read, or a member of it; the text says why, without naming the file."""


@dataclass(frozen=True)
class Member:
    """A file in a zip.

    Attributes:
        name: inside the zip, for messages and for looking at; never a path to write to.
        header: offset of its local header.
        packed: bytes in the zip.
        size: bytes once unpacked, as the directory claims.
        method: 0 where it is stored as it is.
        checksum: CRC-32 of its content.
    """

    name: str
    header: int
    packed: int
    size: int
    method: int
    checksum: int

    @property
    def stored(self) -> bool:
        """Whether its bytes lie in the zip as they are."""
        return self.method == zipfile.ZIP_STORED


def list_members(uri: str) -> list[Member]:
    """The files of a zip, in its order, without folders.

    Raises:
        BadZipError: it is cut short or no zip, its directory is larger than one should be, or a
            name in it leads out of it.
        OSError: it cannot be opened.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    with open_file(uri) as file:
        return list_members_of(file)


def list_members_of(file: Any) -> list[Member]:
    """As `list_members`, of a zip that is open to read and seek.

    Raises:
        BadZipError: as there.
    """
    try:
        with zipfile.ZipFile(cast(IO[bytes], _Bounded(file))) as opened:
            infos = opened.infolist()
    # zipfile raises NotImplementedError for members of a later version of the format than its own.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise BadZipError(f"not a readable zip (cut short?): {error}") from None
    members = []
    for info in infos:
        if info.is_dir():
            continue
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]:
            raise BadZipError(f"its member {name[:80]!r} leads out of it")
        if info.flag_bits & _ENCRYPTED:
            raise BadZipError(f"its member {name[:80]!r} is encrypted")
        members.append(
            Member(
                name,
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.compress_type,
                info.CRC,
            )
        )
    return members


def member_offset(uri: str, member: Member) -> int:
    """Where the bytes of a member begin in its zip.

    Raises:
        BadZipError: its header is none.
        OSError: the zip cannot be opened.
    """
    with open_file(uri) as file:
        return _data_offset(file, member)


def read_member(uri: str, member: Member, most: int = DOCUMENT_BYTES) -> bytes:
    """The content of a member that is no larger than `most`.

    Raises:
        BadZipError: it is larger, damaged, or packed in another way than deflate.
        OSError: the zip cannot be opened.
    """
    with open_file(uri) as file:
        return read_member_of(file, member, most)


def read_member_of(file: Any, member: Member, most: int = DOCUMENT_BYTES) -> bytes:
    """As `read_member`, of a zip that is open to read and seek.

    Raises:
        BadZipError: as there.
    """
    if member.size > most:
        raise BadZipError(f"{member.name} has more than the {most:,} bytes that are read of it")
    target = io.BytesIO()
    _unpack(file, member, target)
    return target.getvalue()


def unpack_member(uri: str, member: Member, path: str) -> None:
    """Unpacks a member into a file of the reader's own naming.

    Raises:
        BadZipError: it claims more than its bytes can hold, is damaged, or packed in another way
            than deflate.
        OSError: the zip cannot be opened, or the disk is full.
    """
    if member.size > WHOLE_FILE_BYTES:
        raise BadZipError(f"{member.name} claims {member.size:,} bytes")
    try:
        check_claim(member.size, member.packed, "data")
    except ValueError as error:
        raise BadZipError(f"{member.name}: {error}") from None
    with open_file(uri) as file, open(path, "wb") as target:
        _unpack(file, member, target)


def _unpack(file: Any, member: Member, target: IO[bytes]) -> None:
    """Writes at most the bytes that the directory claims, and compares the checksum."""
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadZipError(f"{member.name} is packed by method {member.method}: only stored and "
                          "deflated members are read")  # fmt: skip
    file.seek(_data_offset(file, member))
    unpacker = None if member.stored else zlib.decompressobj(-zlib.MAX_WBITS)
    left, written, checksum = member.packed, 0, 0
    try:
        while left and written <= member.size:
            packed = file.read(min(left, _CHUNK))
            if not packed:
                raise BadZipError(f"{member.name} is cut short")
            left -= len(packed)
            while packed:
                # Never more at once than is claimed, and one byte that tells of more.
                room = member.size - written + 1
                content = unpacker.decompress(packed, room) if unpacker else packed
                packed = unpacker.unconsumed_tail if unpacker else b""
                written += len(content)
                if written > member.size:
                    break
                checksum = zlib.crc32(content, checksum)
                target.write(content)
    except zlib.error as error:
        raise BadZipError(f"{member.name} is damaged: {error}") from None
    if written != member.size or checksum != member.checksum:
        raise BadZipError(f"{member.name} is damaged: its content is not what the zip states")


def _data_offset(file: Any, member: Member) -> int:
    file.seek(member.header)
    head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        raise BadZipError(f"{member.name} is cut short")
    magic, name, extra = _LOCAL_HEADER.unpack(head)
    if magic != _MAGIC:
        raise BadZipError(f"{member.name} does not begin where the zip states")
    return int(member.header + _LOCAL_HEADER.size + name + extra)


class _Bounded(io.RawIOBase):
    """A file of which no more is read at once than the directory of a zip may have.

    `zipfile` reads the whole directory with one call, as large as the zip's end claims.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    @override
    def seekable(self) -> bool:
        return True

    @override
    def readable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    @override
    def tell(self) -> int:
        return int(self._file.tell())

    @override
    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes, more than "
                                     f"{ZIP_DIRECTORY_BYTES:,}")  # fmt: skip
        return bytes(self._file.read(size))

    @override
    def close(self) -> None:
        # Who opened the file closes it.
        pass

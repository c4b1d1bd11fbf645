"""Files of this machine's disks: regular ones only, and none larger than what its reader expects.

A name may lead to something else: to open a named pipe waits for a writer that never comes, and
/dev/zero has no end. Links are followed, to regular files.
"""

import errno
import os
import stat
from typing import BinaryIO

from terrafm.errors import UnreadableFileError
from terrafm.storage.claims import check_claim
from terrafm.storage.limits import HARMLESS_BYTES

_KINDS = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Where a disk tells no blocks.
_BLOCK = 512


def open_regular(path: str) -> BinaryIO:
    """Opens a regular file to read, without waiting for anything.

    Raises:
        UnreadableFileError: it is a pipe, a socket or a device, or almost all of it is a hole.
        OSError: it is missing, a folder, or cannot be opened.
    """
    number = open_descriptor(path)
    try:
        return open(number, "rb")
    except OSError:
        os.close(number)
        raise


def open_descriptor(path: str) -> int:
    """As `open_regular`, for who reads ranges of a file descriptor."""
    check_regular(path)
    # What lies there may have changed since: then this does not wait either.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(os.fstat(number), path)
        _check_holes(number, path)
    except OSError:
        os.close(number)
        raise
    return number


def check_regular(path: str) -> None:
    """Refuses what is no regular file, for libraries that open a file by its name.

    Raises:
        UnreadableFileError: it is a pipe, a socket or a device.
        OSError: it is missing or a folder.
    """
    _check(os.stat(path), path)


def check_replaceable(path: str) -> None:
    """As `check_regular` of a file that is written to; one that is missing will be made."""
    if os.path.exists(path):
        check_regular(path)


def read_regular(path: str, most: int) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableFileError: it is none, or has more bytes than `most`.
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_length(size, most, path)
        # So many and no more: some files of the kernel have no size and no end.
        return file.read(size)


def check_length(size: int, most: int, where: str) -> None:
    """Refuses a file that is longer than its reader expects.

    Raises:
        UnreadableFileError: it is.
    """
    if size > most:
        raise UnreadableFileError(
            f"{where} has more than the {most:,} bytes that are read of such a file: it is damaged "
            "or another file than its name says"
        )


def _check(found: os.stat_result, path: str) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no regular file")
    raise UnreadableFileError(f"{path} is {kind}: only regular files and links to them are read")


def _check_holes(number: int, path: str) -> None:
    """Refuses a file whose few bytes on the disk stand for gigabytes of zeros."""
    found = os.fstat(number)
    if found.st_size <= HARMLESS_BYTES:
        return
    occupied = found.st_blocks * _BLOCK
    # Some network disks count no blocks: whether there is any data they know.
    if occupied == 0 and _has_data(number):
        return
    try:
        check_claim(found.st_size, occupied, "zeros")
    except ValueError as error:
        raise UnreadableFileError(f"{path} is almost only a hole: {error}") from None


def _has_data(number: int) -> bool:
    try:
        os.lseek(number, 0, os.SEEK_DATA)
    except OSError:
        return False
    os.lseek(number, 0, os.SEEK_SET)
    return True

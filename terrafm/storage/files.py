"""Files at any URI, local or object storage, through fsspec; writes that are whole or invisible.

Requests to a store are repeated while its faults pass (`terrafm.storage.faults`); a lasting fault
is one line. A file that is not there stays a `FileNotFoundError`, and local faults stay as they
are but for a disk that is full.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from terrafm.errors import StoreRefusedError, TerraFMError, UsageError
from terrafm.storage.addresses import check_address, without_secrets
from terrafm.storage.durable import replace
from terrafm.storage.faults import STALL_SECONDS, explain, is_full, patiently, status_of
from terrafm.storage.limits import DOCUMENT_BYTES
from terrafm.storage.local import check_length, check_regular, read_regular
from terrafm.storage.removal import erase, erase_files

Answer = TypeVar("Answer")

# The libraries' own patience, so that ours decides. Their parts of a large upload keep a few
# attempts: ours repeat it as a whole. A listing is asked for anew: other processes write too.
S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": STALL_SECONDS,
        "read_timeout": STALL_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    },
    "use_listings_cache": False,
}
_S3_PART_ATTEMPTS = 4


def pays_requests() -> bool:
    """Whether the reader pays for requests to S3, by the variable that GDAL and others know."""
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester"


def resolve(uri: str | os.PathLike[str]) -> tuple[Any, str]:
    """Opens the file system of a URI.

    Returns:
        The fsspec file system and the path inside it, without a trailing slash.

    Raises:
        UsageError: the protocol is unknown or its library is missing, or the URI is a chain or
            names a version of an object, or has a password in it that nobody would ask for.
    """
    uri = os.fspath(uri)
    check_address(uri)
    shown = without_secrets(uri)
    # Files name others by URI. A chain unpacks and renders what it finds, up to running code
    # (`reference://` of fsspec before 2026.6), and none is needed for anything here.
    if "::" in uri or uri.startswith("reference:"):
        raise UsageError(f"cannot open {shown}: chained and reference file systems are not read")
    s3 = uri.startswith(("s3://", "s3a://"))
    if s3 and "?versionId=" in uri:
        # s3fs reads a version out of it, and would write and remove the object without it.
        raise UsageError(f"cannot open {shown}: names with ?versionId= are not read or written")
    try:
        options = dict(S3_OPTIONS) if s3 else {}
        if s3 and pays_requests():
            options["requester_pays"] = True
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        advice = "pip install 'terrafm[huggingface]'" if uri.startswith("hf://") else error
        raise UsageError(f"cannot open {shown}: {advice}") from None
    if s3:
        filesystem.retries = _S3_PART_ATTEMPTS
    return filesystem, path.rstrip("/") or "/"


def is_local(uri: str | os.PathLike[str]) -> bool:
    """Whether the URI is on this machine's disk."""
    return "file" in _protocols(resolve(uri)[0])


_ALIASES = {"s3a": "s3", "gcs": "gs"}


def absolute(uri: str | os.PathLike[str]) -> str:
    """A URI that means the same in every process, spelled in one way.

    Local paths start at the root and lose their `file://`; buckets have one protocol (`s3a://`
    becomes `s3://`); nothing ends in a slash, and two slashes inside are one. Links stay: another
    machine may follow them elsewhere.
    """
    uri = os.fspath(uri)
    filesystem, path = resolve(uri)
    if "file" in _protocols(filesystem):
        # What `..` behind a link means only the disk knows.
        named = os.path.realpath(path) if ".." in path.split("/") else os.path.normpath(path)
        return re.sub("^//", "/", named)
    if uri.startswith(("http://", "https://", "hf://")):
        # A server's own business, queries and revisions too.
        return uri
    # By its text: what a file system makes of a path has lost host and account.
    scheme, separator, place = uri.partition("://")
    place = re.sub("//+", "/", place).rstrip("/")
    return f"{_ALIASES.get(scheme, scheme)}{separator}{place}"


def canonical(uri: str | os.PathLike[str]) -> str:
    """The one name of a place, for comparing: as `absolute`, and with a disk's links followed."""
    uri = absolute(uri)
    return os.path.realpath(uri) if is_local(uri) else uri


def arrow_filesystem(uri: str | os.PathLike[str]) -> tuple[FileSystem, str]:
    """File system and path for pyarrow: its own on a disk, our clients elsewhere.

    Arrow's threads that hold a Python file while Python ends abort the process, so none is used
    where Arrow can read by itself.
    """
    filesystem, path = resolve(uri)
    return (LocalFileSystem() if is_local(uri) else PyFileSystem(FSSpecHandler(filesystem))), path


def join(uri: str | os.PathLike[str], *names: str) -> str:
    """Appends names to a URI. The result lies below it, whoever chose the names.

    Raises:
        UsageError: a name leads elsewhere.
    """
    uri = os.fspath(uri)
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "://" in name:
            raise UsageError(f"{name} leads out of {uri}: nothing is read or written there")
    return "/".join([uri.rstrip("/"), *names])


def check_exists(named: str, uri: str | os.PathLike[str]) -> None:
    """Raises UsageError: no file or folder is there; `named` says what it was to be."""
    if not exists(uri):
        verb = "do" if named.endswith("s") else "does"
        raise UsageError(f"{named} {os.fspath(uri)} {verb} not exist")


def check_no_file(uri: str | os.PathLike[str]) -> None:
    """Raises UsageError: the folder that is to be written is a file of a disk."""
    if is_local(uri) and os.path.isfile(resolve(uri)[1]):
        raise UsageError(f"{os.fspath(uri)} is a file: give a folder, or the name of a new one")


def exists(uri: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there.

    Raises:
        UsageError: the store refuses to answer (credentials, address).
        TerraFMError: it fails for too long.
    """
    filesystem, path = resolve(uri)
    try:
        return bool(ask("read", uri, filesystem, lambda: filesystem.exists(path)))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise explain(error, "read", os.fspath(uri)) from None


def file_size(uri: str | os.PathLike[str]) -> int | None:
    """Bytes of a file; None where there is none."""
    filesystem, path = resolve(uri)
    try:
        return int(ask("read", uri, filesystem, lambda: filesystem.size(path)))
    except FileNotFoundError:
        return None


def read_bytes(uri: str | os.PathLike[str], most: int = DOCUMENT_BYTES) -> bytes:
    """The whole content of a file.

    Args:
        uri: of the file.
        most: bytes; a file that has more is not read.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFileError: it is larger, or no regular file.
        UsageError: the store refuses to answer (credentials, address).
        TerraFMError: it fails for too long.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        return read_regular(path, most)
    # One request: asking for the size first would be another.
    content = read_range_of(filesystem, path, os.fspath(uri), 0, most + 1)
    check_length(len(content), most, os.fspath(uri))
    return content


def write_bytes(uri: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that a reader sees all of it or nothing.

    Object stores show an object only when its upload has ended; on a disk a temporary
    neighbour is renamed.

    Raises:
        UsageError: no room, no bucket, no permission.
        TerraFMError: the store fails for too long.
    """
    filesystem, path = resolve(uri)
    if not is_local(uri):
        _write(uri, filesystem, lambda: filesystem.pipe_file(path, content))
        return
    with _replacing(path, uri) as temporary, temporary.open("wb") as file:
        file.write(content)


def upload(file: str | os.PathLike[str], uri: str | os.PathLike[str]) -> None:
    """Copies a local file to any place, whole or invisible.

    Raises:
        UsageError: no bucket, no permission, no room.
        TerraFMError: the store fails for too long.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        _copy_local(file, path, uri)
        return
    _write(uri, filesystem, lambda: filesystem.put_file(os.fspath(file), path))


def download(uri: str | os.PathLike[str], file: str | os.PathLike[str]) -> None:
    """Copies a file of a store to a local one.

    Raises:
        FileNotFoundError: there is no such file.
        TerraFMError: the store fails for too long.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        check_regular(path)
    ask("read", uri, filesystem, lambda: filesystem.get_file(path, os.fspath(file)))


def ensure_writable(uri: str | os.PathLike[str]) -> None:
    """Writes and removes a small file in a folder: better now than after an hour's work.

    Raises:
        UsageError: no room, no bucket, no permission, not a folder.
        TerraFMError: the store fails for too long.
    """
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"1")
        remove(probe)
    except OSError as error:
        raise explain(error, "write", os.fspath(uri)) from None


def read_range(uri: str | os.PathLike[str], start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, fewer where it ends before.

    Raises:
        FileNotFoundError: there is no such file.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        check_regular(path)
    return read_range_of(filesystem, path, os.fspath(uri), start, stop)


def read_range_of(filesystem: Any, path: str, where: str, start: int, stop: int) -> bytes:
    """As `read_range`, of a file system that is open.

    Args:
        filesystem: of fsspec.
        path: inside it.
        where: URI, for messages.
        start: first byte.
        stop: byte behind the last.
    """
    try:
        content: bytes = ask(
            "read", where, filesystem, lambda: filesystem.cat_file(path, start=start, end=stop)
        )
    except StoreRefusedError as error:
        # The file ends before the range begins.
        if status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""
        raise
    return content


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a file within one store, whole or invisible; the store does it where it can.

    Raises:
        StoreRefusedError, StoreFailedError: the store does not.
    """
    filesystem, path = resolve(target)
    origin = resolve(source)[1]
    if is_local(target):
        _copy_local(origin, path, target)
        return
    _write(target, filesystem, lambda: filesystem.cp_file(origin, path))


def list_names(uri: str | os.PathLike[str]) -> list[str]:
    """Names directly under a folder, sorted; empty where the folder is missing."""
    filesystem, path = resolve(uri)
    try:
        entries = ask("read", uri, filesystem, lambda: filesystem.ls(path, detail=False))
    except FileNotFoundError:
        return []
    return sorted(name for e in entries if (name := e.rstrip("/").rpartition("/")[2]))


def list_kinds(uri: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Names directly under a folder: (folders, files), each sorted; empty where it is missing."""
    filesystem, path = resolve(uri)
    try:
        entries = ask("read", uri, filesystem, lambda: filesystem.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if name and entry["name"].rstrip("/") != path:
            kinds[entry["type"] == "directory"].append(name)
    return sorted(kinds[True]), sorted(kinds[False])


def remove(uri: str | os.PathLike[str]) -> None:
    """Removes a file, a link, or a folder with all it holds; nothing happens where none is.

    Raises:
        OSError: the disk does not.
        StoreRefusedError, StoreFailedError: the store does not.
    """
    filesystem, path = resolve(uri)
    if not is_local(uri):
        ask("write", uri, filesystem, lambda: erase(filesystem, path))
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


def remove_files(uri: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Removes files that lie directly in a folder; in a store many with one request.

    Raises:
        OSError: the disk does not; of a folder, for one.
        StoreRefusedError, StoreFailedError: the store does not.
    """
    filesystem, path = resolve(uri)
    paths = [join(path, name) for name in names]
    if not is_local(uri):
        ask("write", uri, filesystem, lambda: erase_files(filesystem, paths))
        return
    for file in paths:
        with suppress(FileNotFoundError):
            os.unlink(file)


def remove_empty(uri: str | os.PathLike[str]) -> None:
    """Removes a folder in which nothing lies; in a store there is none then."""
    if is_local(uri):
        with suppress(OSError):
            os.rmdir(resolve(uri)[1])


def is_link(uri: str | os.PathLike[str]) -> bool:
    """Whether a name on this machine's disk is a link to another place."""
    return is_local(uri) and os.path.islink(resolve(uri)[1])


@contextmanager
def _replacing(path: str, uri: str | os.PathLike[str]) -> Iterator[Path]:
    """A neighbour of a local file that takes its place, whole, when the block ends."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace(temporary, target)
    except OSError as error:
        if is_full(error):
            raise explain(error, "write", os.fspath(uri)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _copy_local(source: str | os.PathLike[str], path: str, uri: str | os.PathLike[str]) -> None:
    check_regular(os.fspath(source))
    with _replacing(path, uri) as temporary:
        shutil.copyfile(source, temporary)


def ask(
    doing: str, uri: str | os.PathLike[str], filesystem: Any, request: Callable[[], Answer]
) -> Answer:
    """Makes a request, patiently where it goes to a store; its lasting faults are one line.

    Raises:
        FileNotFoundError, OSError: as the file system has it.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    if "file" in _protocols(filesystem):
        return request()
    where = os.fspath(uri)
    try:
        return patiently(request, where)
    except (FileNotFoundError, NotADirectoryError, TerraFMError):
        raise
    except Exception as error:
        # Every library raises classes of its own: what is not a missing file becomes one line.
        raise explain(error, doing, where) from error


def _write(uri: str | os.PathLike[str], filesystem: Any, request: Callable[[], object]) -> None:
    try:
        ask("write", uri, filesystem, request)
    except FileNotFoundError as error:
        # Stores have no folders to miss: it is the bucket.
        raise explain(error, "write", os.fspath(uri)) from None


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)

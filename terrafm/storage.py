"""Files at any URI, local or object storage, through fsspec; writes that are whole or invisible."""

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
from pyarrow.fs import LocalFileSystem

from terrafm.errors import UsageError


def resolve(uri: str | os.PathLike[str]) -> tuple[Any, str]:
    """Opens the file system of a URI.

    Returns:
        The fsspec file system and the path inside it, without a trailing slash.

    Raises:
        UsageError: the protocol is unknown or its library is missing.
    """
    uri = os.fspath(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        advice = "pip install 'terrafm[huggingface]'" if uri.startswith("hf://") else error
        raise UsageError(f"cannot open {uri}: {advice}") from None
    return filesystem, path.rstrip("/") or "/"


def is_local(uri: str | os.PathLike[str]) -> bool:
    """Whether the URI is on this machine's disk."""
    return "file" in _protocols(resolve(uri)[0])


def absolute(uri: str | os.PathLike[str]) -> str:
    """A URI that means the same in every process: local paths from the root, others unchanged."""
    uri = os.fspath(uri)
    return resolve(uri)[1] if is_local(uri) else uri


def arrow_filesystem(uri: str | os.PathLike[str]) -> tuple[Any, str]:
    """File system and path for pyarrow: its own on a disk, fsspec's elsewhere.

    Arrow's threads that hold a Python file while Python ends abort the process, so none is used
    where Arrow can read by itself.
    """
    filesystem, path = resolve(uri)
    return (LocalFileSystem() if is_local(uri) else filesystem), path


def join(uri: str | os.PathLike[str], *names: str) -> str:
    """Appends names to a URI."""
    return "/".join([os.fspath(uri).rstrip("/"), *names])


def exists(uri: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there.

    Raises:
        UsageError: the store refuses to answer (credentials, address).
    """
    filesystem, path = resolve(uri)
    try:
        return bool(filesystem.exists(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot reach {uri}: {error}") from None


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = resolve(uri)
    content: bytes = filesystem.cat_file(path)
    return content


def write_bytes(uri: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that a reader sees all of it or nothing.

    Object stores show an object only when its upload has ended; on a disk a temporary
    neighbour is renamed.
    """
    filesystem, path = resolve(uri)
    if "file" not in _protocols(filesystem):
        filesystem.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def list_names(uri: str | os.PathLike[str]) -> list[str]:
    """Names directly under a folder, sorted; empty where the folder is missing."""
    filesystem, path = resolve(uri)
    try:
        entries = filesystem.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name for e in entries if (name := e.rstrip("/").rpartition("/")[2]))


def remove(uri: str | os.PathLike[str]) -> None:
    """Removes a file or a folder with all it holds; nothing happens where none is."""
    filesystem, path = resolve(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)

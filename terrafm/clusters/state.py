"""What is known of the cluster on this machine: a private folder with its token and processes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import ConfigDict, Field

from terrafm.clusters.token import home_folder
from terrafm.errors import UsageError
from terrafm.storage.limits import DOCUMENT_BYTES
from terrafm.storage.local import read_regular
from terrafm.storage.records import Finite, parse_record

FOLDER_VARIABLE = "TERRAFM_CLUSTER_DIR"
SCRATCH_PREFIX = "terrafm-cluster-"
# Bytes of a Unix socket's path; those that Ray appends to a folder, ours included
# (`/ray/session_2026-11-29_16-45-57_123456_1234567/sockets/plasma_store`); letters of mkdtemp.
_LONGEST_SOCKET, _RAYS_OWN, _RANDOM_LETTERS = 106, 68, 8
_RECORD = "cluster.json"
# Clocks that are set while a process runs move what is known of its start by less.
_SAME_START_SECONDS = 1.0
_MOST_PROCESSES = 2**31


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that `terrafm cluster up --local` has started.

    Attributes:
        address: host:port of its GCS, for RAY_ADDRESS; empty while it starts.
        dashboard_url: for `--address`; empty while it starts.
        token_path: file with its token.
        scratch: Ray's own folder: sessions, logs, sockets.
        processes: [pid, time of its start] of what was started, the keeper first.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    address: str
    dashboard_url: str
    token_path: str
    scratch: str
    processes: list[Annotated[list[Finite], Field(min_length=2, max_length=2)]]

    @property
    def keeper(self) -> psutil.Process | None:
        """The process that holds all nodes; None where it has ended."""
        return same_process(*self.processes[0]) if self.processes else None

    def family(self) -> list[psutil.Process]:
        """All that is left of it: recorded processes, and their children."""
        found = {}
        for pid, start in self.processes:
            if (process := same_process(pid, start)) is not None:
                for member in [process, *_children(process)]:
                    found[member.pid] = member
        return list(found.values())


def same_process(pid: float, start: float) -> psutil.Process | None:
    """The process of this number, if it is still the one that started then."""
    if not 0 <= pid < _MOST_PROCESSES:
        return None
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - start) < _SAME_START_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def folder() -> Path:
    """Where the state lies.

    Raises:
        UsageError: nothing names it, and this user has no home.
    """
    named, home = os.environ.get(FOLDER_VARIABLE), home_folder()
    if named:
        # Not expanduser(): it fails where there is no home.
        return Path(os.path.expanduser(named)).absolute()
    if home is None:
        raise UsageError(
            f"this user has no home directory: name a folder for the cluster in {FOLDER_VARIABLE}"
        )
    return home / ".terrafm" / "cluster"


def make_folder() -> Path:
    """Makes it, readable to its owner alone.

    Raises:
        UsageError: it exists and is not the user's own, or cannot be made.
    """
    path = folder()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {path} ({error.strerror}): name another folder in {FOLDER_VARIABLE}"
        ) from None
    if path.stat().st_uid != os.getuid():
        raise UsageError(f"{path} belongs to somebody else: name another in {FOLDER_VARIABLE}")
    path.chmod(0o700)
    return path


def make_token(path: Path) -> None:
    """Writes a new secret of 256 bits, readable to its owner alone from the first moment."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def make_scratch(prefix: str = SCRATCH_PREFIX) -> str:
    """A private folder for Ray, with a path short enough for the sockets in it."""
    return tempfile.mkdtemp(prefix=prefix, dir=scratch_parent(prefix))


def scratch_parent(prefix: str = SCRATCH_PREFIX) -> str:
    """Where such folders lie: the temporary folder, or `/tmp` where its path is too long.

    What is made there is private, by a name that nobody can guess.
    """
    parent = tempfile.gettempdir()
    longest = len(f"{parent}/{prefix}") + _RANDOM_LETTERS + _RAYS_OWN
    return parent if longest <= _LONGEST_SOCKET else "/tmp"  # nosec B108


def read() -> LocalCluster | None:
    """The recorded cluster, running or not; None where there is no record.

    Raises:
        UsageError: the record is damaged, or no regular file.
    """
    if not os.environ.get(FOLDER_VARIABLE) and home_folder() is None:
        return None
    path = folder() / _RECORD
    try:
        content = read_regular(str(path), DOCUMENT_BYTES)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    remedy = "end the cluster's processes yourself, then remove the file"
    return parse_record(content, LocalCluster, str(path), remedy)


def write(cluster: LocalCluster) -> None:
    """Records it: whole or not at all."""
    path = folder() / _RECORD
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(cluster), indent=1) + "\n")
    draft.chmod(0o600)
    draft.replace(path)


def forget(cluster: LocalCluster) -> None:
    """Removes record, token and Ray's folder of a cluster that has ended."""
    scratch = Path(cluster.scratch)
    # Nothing but what `make_scratch` made, whatever the record says.
    if scratch.parent == Path(scratch_parent()) and scratch.name.startswith(SCRATCH_PREFIX):
        shutil.rmtree(scratch, ignore_errors=True)
    Path(cluster.token_path).unlink(missing_ok=True)
    (folder() / _RECORD).unlink(missing_ok=True)


def runs_at(address: str) -> bool:
    """Whether this is the address of the cluster on this machine."""
    cluster = read()
    return cluster is not None and cluster.address == address and cluster.keeper is not None

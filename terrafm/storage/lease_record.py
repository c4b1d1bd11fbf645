"""The file of a lease, and who it names: on a disk, in S3, and where neither helps."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import override

from terrafm.errors import StoreRefusedError
from terrafm.storage.faults import explain, patiently, status_of
from terrafm.storage.files import join, read_bytes, remove, resolve, write_bytes
from terrafm.storage.local import check_replaceable
from terrafm.storage.records import Finite, ProcessNumber, parse_json, validated

LEASE_FILE = ".lease"
SETTLE_SECONDS = 2.0
"""After which all who have written at the same time have done so."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        what: the command, for people.
        host: name of its machine, for people.
        process: its number there.
        since: when it took the lease, UTC.
        machine: boot of that machine.
        space: in which process numbers mean something: two containers of a machine have two.
        started: seconds since 1970 when the process started: numbers are used again.
        key: of this lease alone.
    """

    what: str
    host: str
    process: ProcessNumber
    since: str
    machine: str
    space: str
    started: Finite
    key: str

    @classmethod
    def here(cls, what: str) -> Holder:
        """This process."""
        return cls(
            what=what,
            host=socket.gethostname(),
            process=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            machine=_machine(),
            space=_process_space(),
            started=psutil.Process().create_time(),
            key=uuid.uuid4().hex,
        )

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """The holder that a file names; None where it names none, or was cut short."""
        try:
            return validated(parse_json(content), cls)
        except ValueError:
            return None

    def content(self, renewals: int) -> bytes:
        """The lease's file."""
        return (json.dumps(asdict(self) | {"renewals": renewals}, indent=1) + "\n").encode()

    def runs_here(self) -> bool | None:
        """Whether it is at work on this machine; None where that cannot be known from here."""
        if (self.machine, self.space) != (_machine(), _process_space()):
            return None
        try:
            return bool(abs(psutil.Process(self.process).create_time() - self.started) < 1.0)
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"{self.what} on {self.host}, process {self.process}, since {self.since}"


class Record(ABC):
    """Where the file of a lease lies."""

    @abstractmethod
    def read(self) -> tuple[bytes, Any] | None:
        """Its content, and a tag of that content; None where there is no file."""

    @abstractmethod
    def put(self, content: bytes, tag: Any) -> Any | None:
        """Writes it where its tag is still this one (None: where there is none).

        Returns:
            The new tag; None where another process was faster.
        """

    @abstractmethod
    def has_ended(self, holder: Holder | None) -> bool | None:
        """Whether a holder has ended; None where only its renewals tell."""

    @abstractmethod
    def remove(self, mine: Holder) -> None:
        """Removes the file where it names this holder."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Gives back what this process holds of it."""


class LockedRecord(Record):
    """On a disk: written in place by who holds the file's lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEASE_FILE
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            self._file = self._lock()
        except BaseException:
            self._remove_made()
            raise

    def _lock(self) -> int:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file, writable = self._open()
            except FileNotFoundError:
                # Another command has just removed its empty folder.
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it before may have removed the file between the two.
                with suppress(FileNotFoundError):
                    same = os.path.samestat(os.fstat(file), os.stat(self._path))
                    if same and writable:
                        return file
                    if same:
                        self._path.unlink()
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _open(self) -> tuple[int, bool]:
        """The file, and whether it can be written: another user's can only be locked."""
        check_replaceable(str(self._path))
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags | os.O_RDWR | os.O_CREAT, 0o666), True
        except PermissionError:
            if not self._path.exists():
                raise
            return os.open(self._path, flags | os.O_RDONLY), False

    @override
    def read(self) -> tuple[bytes, Any] | None:
        content = os.pread(self._file, 1 << 16, 0)
        return (content, None) if content else None

    @override
    def put(self, content: bytes, tag: Any) -> Any | None:
        # The lock decides. A full disk keeps others out as well: it only cannot say who it is.
        with suppress(OSError):
            os.pwrite(self._file, content, 0)
            os.ftruncate(self._file, len(content))
        return content

    @override
    def has_ended(self, holder: Holder | None) -> bool | None:
        # The lock is ours: on its own machine the holder has ended. Disks that machines share may
        # know locks of one machine only.
        return True if holder is not None and holder.machine == _machine() else None

    @override
    def remove(self, mine: Holder) -> None:
        self._path.unlink(missing_ok=True)

    @override
    def close(self) -> None:
        os.close(self._file)
        self._remove_made()

    def _remove_made(self) -> None:
        """A command that was refused leaves no empty folder."""
        for path in self._made:
            with suppress(OSError):
                path.rmdir()


class PlainRecord(Record):
    """Where nothing is written on conditions: a file that is read again when all have written."""

    def __init__(self, place: str) -> None:
        self._uri = join(place, LEASE_FILE)

    @override
    def read(self) -> tuple[bytes, Any] | None:
        try:
            content = read_bytes(self._uri)
        except FileNotFoundError:
            return None
        return content, content

    @override
    def put(self, content: bytes, tag: Any) -> Any | None:
        found = self.read()
        if (None if found is None else found[1]) != tag:
            return None
        write_bytes(self._uri, content)
        time.sleep(SETTLE_SECONDS)
        found = self.read()
        return content if found is not None and found[0] == content else None

    @override
    def has_ended(self, holder: Holder | None) -> bool | None:
        runs = None if holder is None else holder.runs_here()
        return None if runs is None else not runs

    @override
    def remove(self, mine: Holder) -> None:
        found = self.read()
        holder = Holder.read(found[0]) if found else None
        if holder is not None and holder.key == mine.key:
            remove(self._uri)


class S3Record(PlainRecord):
    """In S3: an object that is written on conditions."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._filesystem, path = resolve(self._uri)
        bucket, _, key = path.partition("/")
        self._object = {"Bucket": bucket, "Key": key}
        self._tried = False

    @override
    def read(self) -> tuple[bytes, Any] | None:
        try:
            # The tag first: under the tag of an older content nothing is written.
            tag = self._ask("head_object")["ETag"]
            return read_bytes(self._uri), tag
        except FileNotFoundError:
            return None

    @override
    def put(self, content: bytes, tag: Any) -> Any | None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        found = self._put(content, condition)
        if found is not None and not self._tried:
            self._tried = True
            # There is an object now: a store that makes another one knows no conditions.
            if self._put(content, {"IfNoneMatch": "*"}) is not None:
                raise NoConditionsError
        return found

    def _put(self, content: bytes, condition: dict[str, str]) -> Any | None:
        try:
            return self._ask("put_object", Body=content, **condition)["ETag"]
        except FileNotFoundError as error:
            if "IfMatch" in condition:
                return None
            raise explain(error, "write", self._uri) from None
        except StoreRefusedError as error:
            status = status_of(error)
            if status == 501:
                raise NoConditionsError from None
            if status in (409, 412):
                return None
            raise

    def _ask(self, operation: str, **arguments: Any) -> Any:
        def request() -> Any:
            return self._filesystem.call_s3(operation, **self._object, **arguments)

        try:
            return patiently(request, self._uri)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise explain(error, "write", self._uri) from error


class NoConditionsError(Exception):
    """A store that does not write on conditions."""


def _machine() -> str:
    """The same for all processes of a machine until it starts again."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{uuid.getnode():x}-{psutil.boot_time():.0f}"


def _process_space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""

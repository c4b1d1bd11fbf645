"""One writer for a folder, at any URI: a lease that its holder renews until it ends.

The lease is the file `.lease` of the folder: who holds it, where, since when, and a count that
goes up with every renewal. Who finds one decides in this order:

- On a disk the file is locked as well (flock): the kernel gives the lock back the moment its
  holder ends, however it ends, so that on one machine nothing has to be waited for.
- In a store, and of a holder on this machine, the process is looked up.
- Of any other holder nothing is known but the count. Whoever wants the lease watches it: it moves,
  and the lease is held; it does not for `LEASE_SECONDS`, and the lease is taken over. Clocks are
  not compared.

In S3 the file is written with conditions (If-None-Match, If-Match): of several that come at once
one gets it. Stores without conditions, and disks without locks, are written, and read a little
later: who is still named holds the lease. That is as sure as two writes take less than
`SETTLE_SECONDS`.
"""

from __future__ import annotations

import _thread
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terrafm.errors import StoreRefusedError, TerraFMError, UsageError
from terrafm.storage.files import canonical, check_no_file, is_local, read_bytes
from terrafm.storage.lease_record import (
    LEASE_FILE,
    SETTLE_SECONDS,
    Holder,
    LockedRecord,
    NoConditionsError,
    PlainRecord,
    Record,
    S3Record,
)
from terrafm.storage.leftovers import remove_left_over

logger = logging.getLogger(__name__)

LEASE_SECONDS = float(os.environ.get("TERRAFM_LEASE_SECONDS", "60"))
"""A lease that was not renewed for so long is taken over. The same for all writers of a folder."""

_RENEWALS = 6
_LOOK_SECONDS = 0.5
_END_SECONDS = 5.0
# A place that takes no file of ours takes none of the command's: that says so in its own words.
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def lease(
    uri: str | os.PathLike[str], what: str, on_loss: Callable[[], object] | None = None
) -> Iterator[None]:
    """Holds a folder, which is made where it is missing, for one writer.

    Args:
        uri: the folder.
        what: the command that writes, for those who are refused.
        on_loss: called in another thread where somebody else has taken the lease over: this
            process stood still for longer than `LEASE_SECONDS`. By default a command line is
            interrupted.

    Raises:
        UsageError: another writer holds it, or it is a file; nothing was changed.
        TerraFMError: it was lost on the way.
    """
    check_no_file(uri)
    place = canonical(uri)
    mine = Holder.here(what)
    held = _acquire(place, mine)
    if held is None:
        yield
        return
    record, tag = held
    renewal = _Renewal(record, place, mine, tag, on_loss)
    try:
        with renewal:
            # What cannot be removed is in nobody's way.
            with suppress(OSError, TerraFMError):
                remove_left_over(place)
            yield
    finally:
        try:
            if renewal.lost:
                raise TerraFMError(renewal.lost)
            if not renewal.failing:
                with suppress(OSError, TerraFMError):
                    record.remove(mine)
        finally:
            record.close()


def _acquire(place: str, mine: Holder) -> tuple[Record, Any] | None:
    """The lease with its tag; None where nothing can be written, which the command itself says.

    Raises:
        UsageError: another writer is at work.
    """
    record: Record | None = None
    try:
        record = _open_record(place)
        try:
            return record, _take(record, place, mine)
        except NoConditionsError:
            record = PlainRecord(place)
            time.sleep(SETTLE_SECONDS)
            return record, _take(record, place, mine)
    except BaseException as error:
        if record is not None:
            record.close()
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            return None
        if isinstance(error, StoreRefusedError):
            logger.debug("no lease: %s", error)
            return None
        raise


def _take(record: Record, place: str, mine: Holder) -> Any:
    """The tag of the file that names this process.

    Raises:
        UsageError: another writer is at work.
    """
    seen, since = b"", time.monotonic()
    told, known = False, None
    while True:
        found = record.read()
        content, tag = found or (b"", None)
        holder = Holder.read(content)
        # A renewal that is seen halfway names nobody.
        known = holder or known
        if holder is not None and holder.key == mine.key:
            # A request was repeated whose answer had been lost.
            return tag
        gone = found is None or record.has_ended(holder)
        if gone is False:
            raise _held(place, holder)
        if gone is None:
            if seen and content != seen:
                raise _held(place, known)
            seen, waited = content, time.monotonic() - since
            if waited < LEASE_SECONDS:
                if not told:
                    told = True
                    logger.warning(
                        "%s was left by %s: waiting up to %g s to see whether it is still at work",
                        place, holder or "another process", LEASE_SECONDS,
                    )  # fmt: skip
                time.sleep(min(_LOOK_SECONDS, LEASE_SECONDS / _RENEWALS))
                continue
        taken = record.put(mine.content(0), tag)
        if taken is not None:
            return taken


def _held(place: str, holder: Holder | None) -> UsageError:
    return UsageError(
        f"{place} has a writer already: {holder or 'another process'}; wait for it or stop it "
        "(nothing was changed)"
    )


class _Renewal:
    """Renews a lease in a thread.

    Attributes:
        lost: what to say of a lease that somebody else has taken over; empty while it is ours.
        failing: the store did not answer to the last one: the lease is left to lapse.
    """

    def __init__(
        self,
        record: Record,
        place: str,
        mine: Holder,
        tag: Any,
        on_loss: Callable[[], object] | None,
    ) -> None:
        self.lost, self.failing = "", False
        self._record, self._place, self._mine, self._tag = record, place, mine, tag
        self._on_loss = on_loss
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="terrafm-lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(_END_SECONDS)
        self.failing |= self._thread.is_alive()

    def _renew(self) -> None:
        renewals = 0
        while not self._end.wait(LEASE_SECONDS / _RENEWALS):
            renewals += 1
            try:
                tag = self._record.put(self._mine.content(renewals), self._tag)
                if tag is None and not self._is_ours():
                    self._lose()
                    return
            except (OSError, TerraFMError) as error:
                # The store comes back, or the command's own requests fail for the same reason.
                logger.debug("the lease of %s was not renewed: %s", self._place, error)
                self.failing = True
                continue
            self.failing = False
            self._tag = self._tag if tag is None else tag

    def _is_ours(self) -> bool:
        """Whether the file still names this process, under a tag whose answer was lost."""
        found = self._record.read()
        if found is None:
            # Somebody has removed it; nobody has taken it.
            self._tag = None
            return True
        holder = Holder.read(found[0])
        self._tag = found[1]
        return holder is not None and holder.key == self._mine.key

    def _lose(self) -> None:
        found = self._record.read()
        holder = Holder.read(found[0]) if found else None
        self.lost = (
            f"{self._place} was taken over by {holder or 'another process'}: this process had "
            f"stood still for more than {LEASE_SECONDS:g} s; what it wrote since may be lost"
        )
        logger.error("%s", self.lost)
        if self._on_loss is not None:
            self._on_loss()
        else:
            # Nothing where no handler is installed: then the end of the block says it.
            _thread.interrupt_main(signal.SIGTERM)


def _open_record(place: str) -> Record:
    if not is_local(place):
        return S3Record(place) if place.startswith("s3://") else PlainRecord(place)
    try:
        return LockedRecord(Path(place))
    except BlockingIOError:
        raise _held(place, _named(Path(place) / LEASE_FILE)) from None
    except OSError as error:
        if error.errno in _LOCKLESS:
            return PlainRecord(place)
        raise


def _named(path: Path) -> Holder | None:
    """Who holds the lock of a file; it may still be about to write its name."""
    for _ in range(10):
        with suppress(OSError):
            if (holder := Holder.read(read_bytes(path))) is not None:
                return holder
        time.sleep(0.05)
    return None

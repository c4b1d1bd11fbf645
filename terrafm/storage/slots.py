"""A bound on the requests that all processes of a node have under way.

A slot is a lock on a small file: the kernel gives it back when a process ends, however it ends.
"""

import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from terrafm.storage.temporary import own_folder


@contextmanager
def request_slot(limit: int) -> Iterator[None]:
    """Holds one of a node's `limit` slots of this user; waits for one where all are taken.

    Every process must give the same limit.
    """
    folder = _folder(limit)
    order = random.sample(range(limit), limit)
    for number in order:
        # A lock belongs to an open file: threads of one process need one each.
        slot = _open(folder, number)
        with suppress(BlockingIOError):
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        os.close(slot)
    else:
        # Those who wait spread over all slots by chance.
        slot = _open(folder, order[0])
        fcntl.flock(slot, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(slot)


def _open(folder: Path, number: int) -> int:
    try:
        return os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        # Somebody tidies up temporary files that are old.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@cache
def _folder(limit: int) -> Path:
    folder = own_folder("requests") / str(limit)
    folder.mkdir(exist_ok=True)
    return folder

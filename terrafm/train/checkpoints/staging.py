"""Where a checkpoint is made before it is seen, and what clears the work of a killed writer.

For a run on a disk that is a hidden folder of the run: a rename brings it into sight. For a run in
a store it is a folder of this machine's temporary files.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from terrafm.storage import is_local, resolve
from terrafm.storage.durable import sync
from terrafm.storage.temporary import own_folder
from terrafm.train.checkpoints.files import FILES

_PREFIX = ".staging-"
_TEMPORARY = "checkpoints"


@contextmanager
def staging_folder(scratch: Path | None) -> Iterator[Path]:
    """A new folder that is gone when the block ends, unless it was renamed.

    Args:
        scratch: its parent; None for the temporary files of this machine.

    Raises:
        OSError: the disk refuses.
    """
    parent = own_folder(_TEMPORARY) if scratch is None else scratch
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with ExitStack() as held:
            # A run's own folder has one writer, and may lie on a disk that knows no such locks.
            with nullcontext() if scratch is None else suppress(OSError):
                held.enter_context(_locked(staging))
            yield staging
    finally:
        _clear(staging)


def rename(staging: Path, target: Path) -> None:
    """Brings a staging folder into sight; what was at `target` is out of sight first.

    Raises:
        OSError: the disk refuses.
    """
    staging.chmod(0o755)
    # All at once when all are written: the first of them takes the others along.
    for path in (*staging.iterdir(), staging):
        sync(path)
    target.parent.mkdir(exist_ok=True)
    former = staging.with_name(f"{staging.name}-former")
    if target.exists():
        # What somebody else has put beside the checkpoint's own files stays there.
        for path in target.iterdir():
            if path.name not in FILES:
                path.rename(staging / path.name)
        # By a rename as well: half removed, it would be seen as damaged.
        target.rename(former)
    staging.rename(target)
    sync(target.parent)
    _clear(former)


def remove_staging(run_folder: str) -> None:
    """Clears what killed writers left behind: of this run on a disk, of this machine for a store.

    Args:
        run_folder: URI of a run that nobody writes now.
    """
    if is_local(run_folder):
        for path in Path(resolve(run_folder)[1]).glob(f"{_PREFIX}*"):
            _clear(path)
        return
    remove_abandoned(None)


def remove_abandoned(scratch: Path | None) -> None:
    """Clears what killed writers left behind where others may be at work.

    Args:
        scratch: the parent; None for the temporary files of this machine.
    """
    parent = own_folder(_TEMPORARY) if scratch is None else scratch
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), _locked(path):
            _clear(path)


def _clear(folder: Path) -> None:
    """Removes a checkpoint's files, and the folder where nothing else lies in it."""
    with suppress(OSError):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the kernel gives back when the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)

"""Sees what was written onto the disk, so that a power cut leaves the old or the new."""

import os
from contextlib import nullcontext, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Sees a file, or a folder's list of names, onto the disk.

    Raises:
        OSError: the disk refuses.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        # Not all file systems can sync a folder.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(number)
    finally:
        os.close(number)


def replace(written: Path, target: Path) -> None:
    """Brings a written file to its name, in place of what was there, for good.

    Raises:
        OSError: the disk refuses.
    """
    sync(written)
    written.replace(target)
    # Without it the new name may be gone after a power cut.
    sync(target.parent)

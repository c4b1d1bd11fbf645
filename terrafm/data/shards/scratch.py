"""Large files on their way into a dataset: written out of sight, shown when they are whole."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terrafm.storage import is_local, resolve, upload
from terrafm.storage.durable import replace


@contextmanager
def scratch_file(target: str) -> Iterator[Path]:
    """A place to write a file that is to be published at `target`; gone when the block ends."""
    # On a disk the neighbour of the target, so that publishing it is a rename.
    if is_local(target):
        final = Path(resolve(target)[1])
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    else:
        scratch = Path(tempfile.gettempdir()) / f"terrafm-{uuid.uuid4().hex}.parquet"
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def publish(scratch: Path, target: str) -> None:
    """Shows a finished scratch file at its target, whole: a rename, or an upload."""
    if is_local(target):
        replace(scratch, Path(resolve(target)[1]))
    else:
        upload(scratch, target)

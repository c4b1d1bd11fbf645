"""Folders among this machine's temporary files that one user's processes share."""

import os
import stat
import tempfile
from pathlib import Path

from terrafm.errors import UsageError


def own_folder(name: str) -> Path:
    """`terrafm-NAME-UID` of the temporary folder, made where it is missing, for its user alone.

    Raises:
        UsageError: somebody else has made one of that name, or a link.
        OSError: the disk refuses.
    """
    path = Path(tempfile.gettempdir()) / f"terrafm-{name}-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(f"{path} is not this user's own folder: name another place in TMPDIR")
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path

"""Files at any URI. What everyone needs is here; `faults`, `ranges` and `slots` serve readers."""

from terrafm.storage.files import (
    absolute,
    arrow_filesystem,
    download,
    ensure_writable,
    exists,
    file_size,
    is_local,
    join,
    list_names,
    read_bytes,
    remove,
    resolve,
    upload,
    write_bytes,
)

__all__ = [
    "absolute",
    "arrow_filesystem",
    "download",
    "ensure_writable",
    "exists",
    "file_size",
    "is_local",
    "join",
    "list_names",
    "read_bytes",
    "remove",
    "resolve",
    "upload",
    "write_bytes",
]

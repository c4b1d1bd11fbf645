"""What a killed writer has left halfway in a folder, by the names that such files get."""

import re

from terrafm.storage.files import join, list_names, remove

_PROBE = r"\.writable-[0-9a-f]{32}"
_OURS = r"[\w-]+\.(?:json|jsonl|yaml|parquet|html)"
_LEFT = re.compile(rf"{_PROBE}|\.(?:{_PROBE}|{_OURS})\.[0-9a-f]{{32}}")


def remove_left_over(uri: str) -> None:
    """Removes the files that a writer of this folder was about to move into place.

    Only its lease's holder may: who writes there now has files of the same names.

    Raises:
        StoreRefusedError, StoreFailedError: disk or store do not take it.
    """
    for name in list_names(uri):
        if _LEFT.fullmatch(name):
            remove(join(uri, name))

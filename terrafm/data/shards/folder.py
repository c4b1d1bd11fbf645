"""What ingest and append wrote into a dataset's folder, told from everything else that lies there.

Only what is known to be ours is ever removed: a shard by its entry or by its columns, a file that
a killed writer left halfway by the name that our writers give such files. A folder in which
anything else lies is refused before the first file is written.
"""

import re
from collections.abc import Iterator

import pyarrow as pa

from terrafm.data.shards.entry import TILE_FIELDS, ShardEntry
from terrafm.data.shards.manifest import manifest_name
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import is_link, join, list_names, remove, remove_empty, remove_files
from terrafm.storage.lease_record import LEASE_FILE
from terrafm.storage.parquet import open_parquet

SHARDS, ENTRIES, ARCHIVE, STAGING = "shards", "entries", "archive", "appending"
_SHARD = re.compile(r"(v\d+-)?part-\d{5}(-thinned)?")
_HALF = re.compile(r"\.(?P<whole>.+)\.[0-9a-f]{32}")
_TOP = re.compile(r"manifest(-\d+)?\.json|index-\d+\.parquet|quarantine(-\d+)?\.jsonl")
_STAGED = re.compile(r"[0-9a-f]{16}")
_NAMED = 3


def check_folder(uri: str) -> None:
    """Makes sure that a dataset can be written into a folder without a loss to anybody.

    Raises:
        UsageError: what is not of an ingest lies where shards and entries go, or one of the
            dataset's folders is a link to another place.
    """
    for name in (SHARDS, ENTRIES, ARCHIVE, STAGING):
        if is_link(join(uri, name)):
            raise UsageError(
                f"{join(uri, name)} is a link, and nothing is written or removed through one: "
                "make it a folder, or link the whole dataset"
            )
    ours = {SHARDS: set(_shards(uri)), ENTRIES: set(_entries(uri))}
    found = [
        f"{folder}/{name}"
        for folder, known in ours.items()
        for name in list_names(join(uri, folder))
        if name not in known and not _is_half(name)
    ]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UsageError(
            f"{uri} holds what no ingest wrote: {', '.join(found[:_NAMED])}{more}; nothing was "
            "changed: move it away, or take another --output"
        )


def remove_shards(uri: str, kept: set[str], prefix: str = "") -> None:
    """Removes shards of an ingest that are not among those to keep.

    Args:
        uri: the dataset's folder.
        kept: names of shards, without suffix.
        prefix: only shards whose names begin so.
    """
    names = [n for n in _shards(uri) if n.startswith(prefix)]
    remove_files(join(uri, SHARDS), [n for n in names if n.removesuffix(".parquet") not in kept])


def remove_entries(uri: str, kept: set[str], prefix: str) -> None:
    """Removes the entries of such shards."""
    names = [n for n in _entries(uri) if n.startswith(prefix)]
    remove_files(join(uri, ENTRIES), [n for n in names if n.removesuffix(".arrow") not in kept])


def remove_halves(uri: str) -> None:
    """Removes what killed writers left among shards and entries; no reader ever opens it."""
    for folder in (join(uri, SHARDS), join(uri, ENTRIES)):
        remove_files(folder, [name for name in list_names(folder) if _is_half(name)])


def remove_staged(uri: str) -> None:
    """Removes the datasets that appends have staged inside a dataset."""
    folder = join(uri, STAGING)
    for name in list_names(folder):
        if _STAGED.fullmatch(name) and not is_link(join(folder, name)):
            _remove_dataset(join(folder, name))
    remove_empty(folder)


def _remove_dataset(uri: str) -> None:
    # The manifest first: what is left of a removal that was stopped is unfinished, not complete.
    remove(join(uri, manifest_name()))
    ours = {SHARDS: list(_shards(uri)), ENTRIES: list(_entries(uri))}
    for folder, names in ours.items():
        if is_link(join(uri, folder)):
            continue
        halves = [name for name in list_names(join(uri, folder)) if _is_half(name)]
        remove_files(join(uri, folder), [*names, *halves])
        remove_empty(join(uri, folder))
    # An archive that was drawn for this ingest.
    remove(join(uri, ARCHIVE))
    top = [n for n in list_names(uri) if _TOP.fullmatch(n) or _is_half(n) or n == LEASE_FILE]
    remove_files(uri, top)
    remove_empty(uri)


def _shards(uri: str) -> Iterator[str]:
    entries = set(list_names(join(uri, ENTRIES)))
    for stem in _stems(join(uri, SHARDS), ".parquet"):
        name = f"{stem}.parquet"
        if f"{stem}.arrow" in entries:
            known = _is_ours(uri, stem)
        else:
            # A writer that is killed between shard and entry leaves a shard without one.
            known = bool(_SHARD.fullmatch(stem)) and _has_tiles(join(uri, SHARDS, name))
        if known:
            yield name


def _entries(uri: str) -> Iterator[str]:
    for stem in _stems(join(uri, ENTRIES), ".arrow"):
        if _is_ours(uri, stem):
            yield f"{stem}.arrow"


def _stems(folder: str, suffix: str) -> list[str]:
    names = [name for name in list_names(folder) if name.endswith(suffix) and name[0] != "."]
    return [name.removesuffix(suffix) for name in names]


def _is_ours(uri: str, stem: str) -> bool:
    # Ingest's own names are enough: an entry that is damaged is written anew.
    return bool(_SHARD.fullmatch(stem)) or ShardEntry.read(uri, stem) is not None


def _has_tiles(uri: str) -> bool:
    try:
        with open_parquet(uri) as file:
            names = file.schema_arrow.names
    except (OSError, pa.ArrowException, TerraFMError):
        return False
    return bool(names[: len(TILE_FIELDS)] == [field.name for field in TILE_FIELDS])


def _is_half(name: str) -> bool:
    half = _HALF.fullmatch(name)
    return half is not None and half["whole"].endswith((".parquet", ".arrow", ".json", ".jsonl"))

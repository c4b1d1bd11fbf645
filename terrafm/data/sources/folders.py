"""Folders of an archive: what lies in them, which sensor they hold, how large its cells are."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from itertools import islice
from typing import Any, Protocol, TypeVar

from terrafm.data.archive import BadCellError, CellRef, Source
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, SENTINEL
from terrafm.storage import join, list_names, parse_json, read_bytes, resolve
from terrafm.storage.clutter import is_clutter
from terrafm.storage.faults import explain, is_passing, patiently

LAND_COVER = "land_cover"
WORLDCOVER = "worldcover"


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_ALIASES = {
    "s1": "s1",
    "s1rtc": "s1",
    "s1grd": "s1",
    "sentinel1": "s1",
    "s2l1c": "s2_l1c",
    "l1c": "s2_l1c",
    "sentinel2l1c": "s2_l1c",
    "s2l2a": "s2_l2a",
    "l2a": "s2_l2a",
    "sentinel2l2a": "s2_l2a",
    "lulc": LAND_COVER,
    "landcover": LAND_COVER,
    "lc": LAND_COVER,
    "worldcover": WORLDCOVER,
}
# A folder of another package's sensor is named as it, or as its entry says.
_ALIASES = {
    _letters(folder): name
    for name in MODALITIES
    if name not in SENTINEL
    for folder in (name, *MODALITIES[name].folders)
} | _ALIASES

# So many cells tell what is usual: one odd one among them is outvoted.
_PROBED = 3
# `lucl`, `lulcs` and `land_covers` are near to what is known, `classes` is not.
_NEAR = 0.75
_MOST_PROBES = 8


def content_of(folder: str) -> str | None:
    """A modality's name, `LAND_COVER` (aligned rasters), `WORLDCOVER` (ESA's tiles), or None.

    Case and punctuation do not count, nor does the "Core-" before Major-TOM's names.
    """
    letters = _letters(folder)
    return _ALIASES.get(letters) or _ALIASES.get(letters.removeprefix("core"))


def misspelt_land_cover(uri: str) -> str | None:
    """The folder of an archive that seems to be meant for land cover and is not read; or None."""
    wanted = [alias for alias, content in _ALIASES.items() if content in (LAND_COVER, WORLDCOVER)]
    for name in names_if_listed(uri):
        letters = _letters(name)
        near = difflib.get_close_matches(letters, wanted, n=1, cutoff=_NEAR)
        if content_of(name) is None and near and "." not in name:
            return join(uri, name)
    return None


def archive_names(uri: str) -> list[str]:
    """Names directly under a folder of an archive, sorted, without clutter; empty without one."""
    return [name for name in list_names(uri) if not is_clutter(name)]


def names_if_listed(uri: str) -> list[str]:
    """`archive_names`; empty where the store cannot list them.

    Plain HTTP has no listing, and the Hugging Face Hub none above a single dataset.
    """
    try:
        return archive_names(uri)
    # What cannot be listed is told in types of the store's library; what cannot be reached at all
    # is told by the next request.
    except Exception:  # noqa: BLE001
        return []


def find_folders(uri: str) -> dict[str, str]:
    """What the folders directly under a URI hold: content -> URI.

    Raises:
        UsageError: two folders hold the same.
    """
    found: dict[str, str] = {}
    for name in names_if_listed(uri):
        content = content_of(name)
        if content is None:
            continue
        if content in found:
            raise UsageError(
                f"{join(uri, name)} and {found[content]} are both a folder of {content}: "
                "rename the one that is not to be read"
            )
        found[content] = join(uri, name)
    return found


def spread_out(refs: Sequence[CellRef]) -> Iterator[CellRef]:
    """All cells, first some from all over the list: neighbours are odd together."""
    if not refs:
        return
    few = {round(k * (len(refs) - 1) / (_MOST_PROBES - 1)) for k in range(_MOST_PROBES)}
    yield from (refs[number] for number in sorted(few))
    yield from (ref for number, ref in enumerate(refs) if number not in few)


def usual_shape(
    source: Source, refs: Sequence[CellRef], otherwise: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of the archive's cells, by what most of a few have.

    Args:
        source: reads them.
        refs: all cells.
        otherwise: where none of those looked at can be read.
    """
    shapes: list[tuple[int, int]] = []
    listed = [ref for ref in refs if ref.modalities]
    for ref in islice(spread_out(listed), _MOST_PROBES):
        try:
            shapes.append(source.read(ref).shape)
        except BadCellError:
            continue
        if len(shapes) == _PROBED:
            break
    return Counter(shapes).most_common(1)[0][0] if shapes else otherwise


def is_missing(error: BaseException) -> bool:
    """Whether an error says that a file is not there, and not only that it was not given.

    fsspec's HTTP says "not found" whatever the server's answer was; the cause has the status.
    """
    status = getattr(error.__cause__, "status", HTTPStatus.NOT_FOUND)
    return isinstance(error, FileNotFoundError | NotADirectoryError) and status in (
        HTTPStatus.NOT_FOUND,
        HTTPStatus.GONE,
    )


def is_file(uri: str) -> bool:
    """Whether a file is there, without opening it: over HTTP a HEAD request.

    Raises:
        UsageError: the store cannot be reached or refuses to answer.
        StoreFailedError: it fails for too long.
    """
    filesystem, path = resolve(uri)
    try:
        return bool(patiently(lambda: filesystem.info(path), uri)["type"] == "file")
    # Stores report failures (credentials, network) in types of their own libraries.
    except Exception as error:  # noqa: BLE001
        if is_missing(error):
            return False
        if is_passing(error):
            raise explain(error, "read", uri) from None
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UsageError(f"cannot reach {uri}: {reason}") from None


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Looked(Protocol):
    """What was seen in a folder.

    Attributes:
        folders: URIs of those in it that are to be looked into.
    """

    folders: list[str]


_Looked = TypeVar("_Looked", bound=Looked)
# Listing an archive of small files is waiting: for a disk a little, for object storage mostly.
_THREADS = 16


def walk(look: Callable[[str], _Looked], folder: str, deepest: int = 8) -> Iterator[_Looked]:
    """What `look` sees in a folder and in those that it names there, all of one depth at once.

    Args:
        look: called with the URI of a folder.
        folder: URI to begin with.
        deepest: so many folders within one another are looked into.
    """
    folders = [folder]
    for _ in range(deepest):
        if not folders:
            return
        seen = for_all(look, folders)
        yield from seen
        folders = [uri for one in seen for uri in one.folders]


def for_all(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Applies `work` to all items in threads; results in the items' order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, items))


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object from any file system.

    Raises:
        BadCellError: the file is missing, cut short, or no JSON object.
    """
    try:
        content = parse_json(read_bytes(uri))
    except (OSError, ValueError) as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else str(error)
        raise BadCellError(uri, f"metadata cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise BadCellError(uri, "metadata cannot be read: not a JSON object")
    return content

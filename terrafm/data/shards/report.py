"""What a dataset's report says, as far as anything reads it: counts and decisions of ingest."""

from typing import Any, NotRequired

from typing_extensions import TypedDict

from terrafm.storage.records import Count, open_keys, validated

_Counts = dict[str, Count]


@open_keys
class _Decision(TypedDict):
    unit: str
    offset: int
    reason: str
    products: Count
    margin: NotRequired[int]


@open_keys
class _MaxTiles(TypedDict):
    spread: NotRequired[list[str]]
    tiles_before: NotRequired[Count]
    tiles_dropped: NotRequired[Count]
    class_counts_before: NotRequired[dict[int, Count]]


@open_keys
class _Archive(TypedDict):
    pairing: NotRequired[dict[str, _Counts]]
    repeated_cells: NotRequired[_Counts]


@open_keys
class _Origin(TypedDict):
    source: NotRequired[str]
    input: NotRequired[str]
    sensors: NotRequired[dict[str, dict[str, Any]]]


@open_keys
class _Quarantine(TypedDict):
    tiles: NotRequired[Count]
    faults: NotRequired[Count]


@open_keys
class _Appended(TypedDict):
    version: Count
    tiles: Count
    tiles_already_there: Count
    settings: _Origin
    archive: _Archive


@open_keys
class _Report(TypedDict):
    selection: NotRequired[_Counts]
    products_left_out: NotRequired[dict[str, _Counts]]
    missing_bands: NotRequired[dict[str, _Counts]]
    class_counts_before_selection: NotRequired[dict[int, Count]]
    worldcover_lacking: NotRequired[_Counts]
    decisions: NotRequired[dict[str, list[_Decision]]]
    quarantine: NotRequired[_Quarantine]
    max_tiles: NotRequired[_MaxTiles]
    settings: NotRequired[_Origin]
    archive: NotRequired[_Archive]
    appended: NotRequired[list[_Appended]]


def check_report(report: dict[str, Any]) -> dict[str, Any]:
    """The report as it stands, once it fits; keys that nobody reads may hold anything.

    Raises:
        ValueError: a part is of another kind than ingest writes; names it.
    """
    validated(report, _Report)
    return report

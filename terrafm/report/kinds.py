"""What a page can be about, and how a folder of each kind is known by the names in it.

Nothing slow is imported here: a command line says at once that a folder is none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrafm.errors import UsageError
from terrafm.storage import absolute, check_exists, list_names

if TYPE_CHECKING:
    from terrafm.config import Config
    from terrafm.report.blocks import Section

MOST_TARGETS = 16
"""Folders on one page: more runs are no longer told apart by colour and dashes."""


MOST_SEEN = 6
"""Runs of a page of which pictures are drawn, the first ones."""


@dataclass(frozen=True)
class Target:
    """A folder that a page is about.

    Attributes:
        uri: of the folder.
        name: short, unlike those of the others on the page.
        kind: what it is.
    """

    uri: str
    name: str
    kind: Kind


@dataclass(frozen=True)
class Wanted:
    """What a page should show beside what lies in the folders.

    Attributes:
        config: for the resampling of datasets.
        pictures: what each run's best checkpoint sees; the model is loaded for it.
        data: URI of the tiles that pictures are of, where they no longer lie where they did.
    """

    config: Config
    pictures: bool = False
    data: str | None = None


Sections = Callable[[Sequence[Target], Wanted], list["Section"]]


@dataclass(frozen=True)
class Kind:
    """Something that a page can be about.

    Attributes:
        name: in words.
        plural: of it.
        is_one: whether a folder with these names holds one.
        sections: of several targets of the kind, which share them.
        goes_on: whether a target still changes; None for a kind that does not.
    """

    name: str
    plural: str
    is_one: Callable[[Collection[str]], bool]
    sections: Sections
    goes_on: Callable[[str], bool] | None = None


def _run_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    from terrafm.report.run_page import run_sections
    from terrafm.report.run_record import read_run

    runs = [read_run(target.uri, target.name) for target in targets]
    sections = run_sections(runs)
    if wanted.pictures:
        # Only pictures need the model, and torch.
        from terrafm.report.learned import learned_section

        # More would not fit into the page's size.
        shown = runs[:MOST_SEEN]
        drawn = [learned_section(run, wanted.data, len(runs) > 1) for run in shown]
        sections[-1:-1] = drawn
    return sections


def _is_run(names: Collection[str]) -> bool:
    return bool({"config.yaml", "metrics.jsonl"} & {*names}) and bool(
        {"metrics.jsonl", "events.jsonl", "checkpoints", "dataset.json"} & {*names}
    )


def _run_goes_on(uri: str) -> bool:
    from terrafm.report.run_record import still_runs

    return still_runs(uri)


def _dataset_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    from terrafm.report.dataset_page import dataset_sections

    return dataset_sections(targets, wanted)


def _is_dataset(names: Collection[str]) -> bool:
    return "manifest.json" in names


def _embedding_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    from terrafm.report.embeddings_page import embedding_sections

    return embedding_sections(targets, wanted)


def _is_embedding(names: Collection[str]) -> bool:
    return "embedding.json" in names


_kinds = [
    Kind("run", "runs", _is_run, _run_sections, _run_goes_on),
    Kind("dataset", "datasets", _is_dataset, _dataset_sections),
    Kind("embedding folder", "embedding folders", _is_embedding, _embedding_sections),
]


def register(kind: Kind) -> None:
    """Adds a kind, for packages beside the library; one of the same name is replaced."""
    _kinds[:] = [known for known in _kinds if known.name != kind.name] + [kind]


def find_targets(uris: Sequence[str]) -> list[Target]:
    """What each folder is.

    Raises:
        UsageError: one does not exist or is nothing that a page can be about, stands twice, or
            there are too many.
    """
    if len(uris) > MOST_TARGETS:
        raise UsageError(f"one page has room for {MOST_TARGETS} folders, not {len(uris)}")
    places = [absolute(uri) for uri in uris]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"{place} was given twice")
    names = _short_names(places)
    return [
        Target(place, name, _kind_of(uri, place))
        for uri, place, name in zip(uris, places, names, strict=True)
    ]


def _kind_of(uri: str, place: str) -> Kind:
    check_exists("folder", uri)
    try:
        names = list_names(place)
    except NotADirectoryError:
        names = []
    found = next((kind for kind in _kinds if kind.is_one(names)), None)
    if found is None:
        known = ", ".join(kind.name for kind in _kinds)
        hint = ""
        if "state.json" in names or place.rpartition("/")[2] == "checkpoints":
            hint = ": give the run's folder, above its checkpoints"
        raise UsageError(f"{uri} is none of what a report can be about ({known}){hint}")
    return found


def _short_names(places: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [place.split("/") for place in places]
    count = 1
    while count < 20 and len({tuple(p[-count:]) for p in parts}) < len(parts):
        count += 1
    return ["/".join(p[-count:]) for p in parts]

"""Arguments that several functions have, and what is asked of them."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

from terrafm.config import Config, load_config
from terrafm.errors import UsageError
from terrafm.modalities import check_plugins
from terrafm.progress import Advance, progress_bar, working
from terrafm.terminal import console

Path = str | os.PathLike[str]
"""A folder or file on a disk, or a URI."""
Settings = Mapping[str, Any] | Sequence[str] | None
"""Configuration keys: {"train.steps": 20}, or as after --set: ["train.steps=20"]."""
Progress = bool | Callable[[int, int], None]
"""True shows it, in a terminal and in a notebook; a function gets (done, total); False: nothing."""
Names = str | Sequence[str] | None
"""One name, several, or several in one text with commas."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def begin() -> None:
    """What every function does first.

    Raises:
        UsageError: a sensor of another package cannot be loaded.
    """
    check_plugins()
    if console.is_jupyter:
        # tqdm and Ray say that widgets are not installed, which nothing here needs.
        warnings.filterwarnings("ignore", message="IProgress not found")
        logging.getLogger("ray.widgets").setLevel(logging.ERROR)


def config_of(source: Path | None, set: Settings, first: Sequence[str] = ()) -> Config:
    """The tree of settings.

    Args:
        source: recipe or file; None for the defaults.
        set: settings over it.
        first: settings that `set` may override.

    Raises:
        UsageError: an unknown key, a value out of its bounds, or no such recipe or file.
    """
    if isinstance(set, str):
        raise UsageError(f'set takes {{"section.key": value}} or a list of texts, not {set!r}')
    if isinstance(set, Mapping):
        set = [f"{key}={json.dumps(value, default=os.fspath)}" for key, value in set.items()]
    return load_config(None if source is None else os.fspath(source), [*first, *(set or ())])


def uri_of(path: Path | None) -> str | None:
    """A path as text."""
    return None if path is None else os.fspath(path)


def uris_of(paths: Path | Sequence[Path]) -> list[str]:
    """One path or several, as texts."""
    if isinstance(paths, str | os.PathLike):
        return [os.fspath(paths)]
    return [os.fspath(path) for path in paths]


def names_of(names: Names) -> tuple[str, ...] | None:
    """Names, one by one; None where none were given."""
    if names is None:
        return None
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(part.strip() for part in parts if part.strip())


def choice_of(kinds: type[_Choice], given: str, name: str) -> _Choice:
    """The member of an enumeration.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return kinds(given)
    except ValueError:
        raise UsageError(f"{name} is one of {', '.join(kinds)}, not {given!r}") from None


def is_by_set(normalise: str) -> bool:
    """Whether images are normalised by the data's own statistics.

    Raises:
        UsageError: neither "weights" nor "set".
    """
    if normalise not in ("weights", "set"):
        raise UsageError(f"normalise is one of weights, set, not {normalise!r}")
    return normalise == "set"


def at_least(**numbers: tuple[int | None, int]) -> None:
    """Checks {name: (number, least)}; None is no number.

    Raises:
        UsageError: one is smaller.
    """
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise UsageError(f"{name} must be {least} or more, not {number}")


@contextmanager
def shown(progress: Progress, unit: str, doing: str) -> Iterator[Advance | None]:
    """What the work is to call as it proceeds; None where nobody wants to know.

    Enter it before what takes seconds to import: what is being done is then said at once.
    """
    if callable(progress):
        yield lambda done, total, line=None: progress(done, total)
    elif progress:
        with progress_bar(console, unit, doing) as advance:
            yield advance
    else:
        yield None


@contextmanager
def telling(progress: Progress, doing: str) -> Iterator[Callable[[str], None]]:
    """Says in words what is being done, where the work does not count anything."""
    if progress is True:
        with working(console, doing) as tell:
            yield tell
    else:
        yield lambda _: None

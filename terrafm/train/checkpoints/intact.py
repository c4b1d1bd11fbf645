"""Whether checkpoints are whole, while their run may remove them or write them anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from terrafm.storage import join, list_names, read_bytes
from terrafm.train.checkpoints.files import MARKER, read_digest
from terrafm.train.checkpoints.store import (
    CheckpointGoneError,
    DamagedCheckpointError,
    list_checkpoints,
    number_in,
    read_marker,
)
from terrafm.train.run_folder import step_name


def damage_of(uri: str) -> Iterator[tuple[str, str]]:
    """Reads every file and compares it with the marker: (file, what is wrong with it).

    Raises:
        UsageError: as `read_marker`.
    """
    try:
        files = read_marker(uri)["files"]
    except DamagedCheckpointError:
        yield MARKER, "is not readable"
        return
    for name, written in files.items():
        found = read_digest(join(uri, name))
        if found is None:
            yield name, "is missing"
        elif found != written:
            yield name, "is not what was written"


def seen_damage(uri: str, most: int | None = None) -> list[tuple[str, str]] | None:
    """`damage_of` a checkpoint that its run may remove or write anew meanwhile.

    Args:
        uri: of the checkpoint.
        most: so many faults are enough.

    Returns:
        The faults; None where the run has removed it.

    Raises:
        UsageError: a newer version of this library wrote it.
    """
    seen: list[tuple[str, str]] = []
    while True:
        before = _marker_of(uri)
        if before is None:
            return None
        with suppress(CheckpointGoneError):
            faults = list(islice(damage_of(uri), most))
            # What is damaged is so twice, under the marker that was read first: between two
            # folders of one name there is a moment without any.
            if not faults or (faults == seen and _marker_of(uri) == before):
                return faults
            seen = faults


def _marker_of(uri: str) -> bytes | None:
    try:
        return read_bytes(join(uri, MARKER))
    except (FileNotFoundError, NotADirectoryError):
        return None


def newest_intact(folder: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        Its URI, or None where no checkpoint was ever completed; and one line for each damaged
        or misnamed checkpoint that was passed over.

    Raises:
        DamagedCheckpointError: there are checkpoints, and none of them is whole.
    """
    complaints: list[str] = []
    found = list_checkpoints(folder)
    while found:
        step, uri = found.pop()
        faults = seen_damage(uri, most=1)
        if faults is None:
            # The run goes on meanwhile: there are newer ones.
            complaints, found = [], list_checkpoints(folder)
        elif faults:
            complaints.append(f"checkpoint {uri}: {' '.join(faults[0])}")
        else:
            return uri, [*complaints, *_misnamed(folder, step)]
    complaints += _misnamed(folder, 0)
    if complaints:
        raise DamagedCheckpointError(f"no checkpoint in {folder} is whole: {complaints[0]}")
    return None, []


def _misnamed(folder: str, after: int) -> list[str]:
    """A line on each complete checkpoint of a later step that has not the name a run gives it."""
    found = ((name, number_in(name)) for name in list_names(folder))
    return [
        f"{join(folder, name)} is not looked at: a run names it {step_name(step)}"
        for name, step in found
        if step is not None
        and step > after
        and name != step_name(step)
        and MARKER in list_names(join(folder, name))
    ]

"""Pages about runs, datasets, embeddings and sweeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from terrafm import early
from terrafm.api.arguments import (
    Path,
    Progress,
    Settings,
    begin,
    config_of,
    telling,
    uri_of,
    uris_of,
)


@dataclass(frozen=True)
class Page:
    """A page that was written: its URI, and its size in bytes."""

    uri: str
    bytes: int


def report(
    folders: Path | Sequence[Path],
    output: Path,
    *,
    pictures: bool = False,
    data: Path | None = None,
    set: Settings = None,
    progress: Progress = True,
) -> Page:
    """Writes a page about runs, datasets, embeddings or sweeps: `terrafm report`.

    Args:
        folders: one of them, or several side by side.
        output: FILE.html.
        pictures: show what each run's best checkpoint sees; loads the model.
        data: the tiles, where they no longer lie where they did.
        set: keys of the resampling of datasets.
        progress: say what is being done.

    Raises:
        UsageError: a folder is nothing that a page can be about, or the page has no place.
        TerraFMError: a folder cannot be read, or the page not written.
    """
    begin()
    config = config_of(None, set)
    output, data = os.fspath(output), uri_of(data)
    targets = early.check_report(uris_of(folders), output, data)
    with telling(progress, f"reading {', '.join(target.uri for target in targets)}"):
        from terrafm.report.kinds import Wanted
        from terrafm.report.writing import write_report

        return Page(output, write_report(targets, Wanted(config, pictures, data), output))

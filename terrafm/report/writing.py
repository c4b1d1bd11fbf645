"""Writes a page about folders, once or again and again while they change."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from terrafm.report.blocks import Section
from terrafm.report.kinds import Target, Wanted
from terrafm.report.page import Page, write_page


def write_report(
    targets: Sequence[Target], wanted: Wanted, output: str, refresh: int | None = None
) -> int:
    """Writes one page.

    Args:
        targets: what it is about.
        wanted: what is shown beside.
        output: URI of the HTML file.
        refresh: seconds after which a browser loads it again.

    Returns:
        Its size in bytes.

    Raises:
        TerraFMError: a folder cannot be read, or the page not written.
    """
    sections: list[Section] = []
    for kind, group in groupby(targets, key=lambda target: target.kind):
        found = kind.sections(list(group), wanted)
        before = {section.title for section in sections}
        # One title twice would be one link twice.
        sections += [
            replace(one, title=f"{one.title} ({kind.name})") if one.title in before else one
            for one in found
        ]
    subtitle = ", ".join(target.uri for target in targets)
    return write_page(output, Page(_title(targets), subtitle, sections, refresh))


def watch(
    targets: Sequence[Target],
    wanted: Wanted,
    output: str,
    seconds: int,
    told: Callable[[int], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Writes a page every so many seconds until nothing in the folders changes any more.

    Args:
        targets: what it is about.
        wanted: what is shown beside.
        output: URI of the HTML file.
        seconds: between two pages.
        told: called with the size of each.
        pause: waits.
    """
    while True:
        # Asked first: what is written after the end has all of it.
        going = any(t.kind.goes_on is not None and t.kind.goes_on(t.uri) for t in targets)
        told(write_report(targets, wanted, output, seconds if going else None))
        if not going:
            return
        pause(seconds)


def _title(targets: Sequence[Target]) -> str:
    if len(targets) == 1:
        return f"{targets[0].kind.name.capitalize()} {targets[0].name}"
    counts = Counter(target.kind for target in targets)
    words = [f"{n} {kind.name if n == 1 else kind.plural}" for kind, n in counts.items()]
    return f"{', '.join(words)}: {', '.join(target.name for target in targets)}"

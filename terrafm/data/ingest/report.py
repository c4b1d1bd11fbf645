"""What an ingest did, and how it is told."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from terrafm.storage import join
from terrafm.terminal import InNotebooks
from terrafm.units import counted

QUARANTINE = "quarantine.jsonl"
_NAMED = 20


@dataclass(frozen=True)
class IngestReport(InNotebooks):
    """What an ingest did.

    Attributes:
        uri: the dataset.
        tiles: tiles in it.
        fingerprint: of its content.
        already_complete: nothing had to be done.
        details: the report stored in the dataset's manifest.
    """

    uri: str
    tiles: int
    fingerprint: str
    already_complete: bool
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "output": self.uri,
            "tiles": self.tiles,
            "fingerprint": self.fingerprint,
            "already_complete": self.already_complete,
            "details": self.details,
        }

    def render(self) -> Text:
        """One paragraph for the terminal."""
        counts = self.details["selection"]
        head = "already complete" if self.already_complete else "done"
        made = f"{counted(self.tiles, 'tile')} of {counted(counts['cells'], 'cell')}"
        parts = [f"{head}: {made}"]
        if counts["water_only_dropped"]:
            parts.append(f"{counts['water_only_dropped']} of open sea dropped")
        if counts.get("tiles_over_limits"):
            parts.append(f"{counts['tiles_over_limits']} over a limit dropped")
        if thinned := self.details.get("max_tiles"):
            parts.append(f"{thinned['tiles_dropped']} over ingest.max_tiles dropped")
        if counts["edge_pixels_dropped"]:
            parts.append(f"{counts['edge_pixels_dropped']} pixels at the edges dropped")
        text = Text(", ".join(parts) + f"\ndataset {self.uri}, fingerprint {self.fingerprint[:16]}")
        if lacking := self.details.get("worldcover_lacking"):
            # Never more than what fits a terminal: inspect has them all.
            text.append(
                f"\n{counts['cells_without_worldcover']} cells lie on WorldCover tiles that are "
                f"not at hand ({first_names(lacking)}): their land cover is not known there",
                style="yellow",
            )
        if faults := self.details["quarantine"]["faults"]:
            lost = counts["tiles_quarantined"]
            text.append(
                f"\n{counted(lost, 'tile')} in quarantine, {counted(faults, 'fault')}: "
                f"{join(self.uri, QUARANTINE)}",
                style="yellow",
            )
        return text


def first_names(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

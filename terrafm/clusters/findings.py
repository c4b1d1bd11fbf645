"""A line of the doctor's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "FAULT"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK, WARNING or FAULT.
        text: what was found, and where it is bad what to do.
    """

    level: str
    text: str


def is_sound(findings: Iterable[Finding]) -> bool:
    """Whether nothing of it is a fault."""
    return all(finding.level != FAULT for finding in findings)

"""A line of the doctor's report."""

from __future__ import annotations

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

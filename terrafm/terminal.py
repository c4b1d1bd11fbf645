"""What all verbs of the command line share: where they print, and how results look."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from terrafm.units import human_bytes

console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def report(
    result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], RenderableType]
) -> None:
    """Prints a result, as one line of JSON or as its module renders it."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        rendered = render(result)
        # A sentence with a long path stays one line, for those who search a log for it.
        console.print(rendered, soft_wrap=isinstance(rendered, str), crop=False)


def render_figures(figures: dict[str, Any]) -> Table:
    """Names and values, one a row."""
    table = Table(show_header=False, box=None)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), _shown(name, value))
    return table


def _shown(name: str, value: Any) -> str:
    if "bytes" in name or "memory" in name:
        return human_bytes(float(value))
    return f"{value:,}" if isinstance(value, int) else str(value)

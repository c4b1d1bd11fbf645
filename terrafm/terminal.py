"""What all verbs of the command line share: where they print, and how results look."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from terrafm.storage import to_json
from terrafm.storage.addresses import without_secrets
from terrafm.units import human_bytes

# What a terminal obeys instead of showing it: C0 but tab and newline, DEL, and C1. And lone
# surrogates, which paths that are no UTF-8 have: no stream can write them.
_OBEYED = {*range(32), *range(127, 160), *range(0xD800, 0xE000)} - {9, 10}
_REPLACED = dict.fromkeys(_OBEYED, "\ufffd")


def shown_text(text: str) -> str:
    """Text without what a terminal obeys, and without secrets of addresses."""
    return without_secrets(text.translate(_REPLACED))


class PlainConsole(Console):
    """Prints text as it is: brackets are no markup, and control characters become U+FFFD.

    Paths, tile ids and class names come from files and arguments, and may hold anything. Styles
    are given beside the text, by `rich.text.Text` or a column's style. Secrets in addresses are
    left out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Replaces before a table measures its cells; rich would drop some of these silently."""
        return super().render_str(shown_text(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Replaces in all that is shown; what moves the cursor is a segment of its own kind."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(shown_text(one.text), one.style)


class PlainFormatter(logging.Formatter):
    """Lines of the log, without control characters and secrets too."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return shown_text(super().format(record))


console = PlainConsole()
errors = PlainConsole(stderr=True, soft_wrap=True, highlight=False)

_TEXT_WIDTH = 100


def as_text(rendered: RenderableType) -> str:
    """What would be printed, as text without colours."""
    # A notebook's kernel has FORCE_COLOR set, which would put codes of colours into the text.
    page = PlainConsole(
        file=io.StringIO(), width=_TEXT_WIDTH, force_jupyter=False, force_terminal=False,
        color_system=None,
    )  # fmt: skip
    with page.capture() as text:
        page.print(rendered, soft_wrap=isinstance(rendered, str))
    return text.get().rstrip()


class InNotebooks:
    """The last value of a notebook's cell, shown as its verb shows it."""

    def render(self) -> RenderableType:
        """As the verb shows it."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # IPython prefers it to the repr of a dataclass; an inherited `_repr_pretty_` it does not.
        return {"text/plain": as_text(self.render())}


class Result(dict[str, Any], InNotebooks):
    """What a verb found: the values of its `--json`, and by `str()` what it prints.

    Args:
        values: JSON-able.
        render: how the verb shows them.
    """

    def __init__(
        self, values: dict[str, Any], render: Callable[[dict[str, Any]], RenderableType]
    ) -> None:
        super().__init__(values)
        self._render = render

    def render(self) -> RenderableType:
        """As the verb shows it."""
        return self._render(self)

    def __str__(self) -> str:
        return as_text(self.render())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # A printer of dictionaries comes before the method above.
        printer.text(str(self))


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def show(result: Result, as_json: bool) -> None:
    """Prints a result, as one line of JSON or as its module renders it."""
    report(result, as_json, lambda _: result.render())


def report(
    result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], RenderableType]
) -> None:
    """Prints what a verb found, as one line of JSON or as its module renders it."""
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
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

"""What all verbs of the command line share: where they print, and how results look."""

from __future__ import annotations

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


def _shown_text(text: str) -> str:
    return without_secrets(text.translate(_REPLACED))


class PlainConsole(Console):
    """Prints text as it is: brackets are no markup, and control characters become U+FFFD.

    Paths, tile ids and class names come from files and arguments, and may hold anything. Styles
    are given beside the text, by `rich.text.Text` or a column's style. Secrets in addresses are
    left out.

    Attributes:
        results_only: with --quiet or --json nothing is shown of what is being done.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        self.results_only = False

    def say(self, text: str) -> None:
        """Prints a line that is no result: what is being done, or how far it is."""
        if text and not self.results_only:
            self.print(text, soft_wrap=True, highlight=False)
            # Whoever reads a pipe or a file sees it now, not when a buffer is full.
            self.file.flush()

    def tell(self, text: str) -> None:
        """Prints a line of a result, however long."""
        self.print(text, soft_wrap=True, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Replaces before a table measures its cells; rich would drop some of these silently."""
        return super().render_str(_shown_text(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Replaces in all that is shown; what moves the cursor is a segment of its own kind."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(_shown_text(one.text), one.style)


class PlainFormatter(logging.Formatter):
    """Lines of the log, without control characters and secrets too."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return _shown_text(super().format(record))


console = PlainConsole()
errors = PlainConsole(stderr=True, soft_wrap=True, highlight=False)


def _show_results_only(given: bool) -> bool:
    if given:
        console.results_only = True
    return given


def _be_quiet(given: bool) -> bool:
    if given:
        logging.getLogger().setLevel(logging.ERROR)
    return _show_results_only(given)


# Both work by themselves: no verb has to look at `--quiet`, and none shows progress with `--json`.
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_show_results_only, help="Print the result as one JSON object, alone."
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_be_quiet, help="Print nothing but results and errors."),
]


def report(
    result: dict[str, Any],
    as_json: bool,
    render: Callable[[dict[str, Any]], RenderableType],
) -> None:
    """Prints a result, as one line of JSON or as its module renders it.

    Args:
        result: of plain types.
        as_json: whether `--json` was given.
        render: makes it readable.
    """
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
    else:
        rendered = render(result)
        # A sentence with a long path stays one line, for those who search a log for it.
        is_text = isinstance(rendered, str | Text)
        console.print(rendered, soft_wrap=is_text, highlight=not is_text, crop=False)


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

"""What all verbs of the command line share: where they print, and how results look."""

from __future__ import annotations

import io
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from terrafm.storage import to_json
from terrafm.storage.addresses import without_secrets

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

    Attributes:
        results_only: with --quiet or --json nothing is shown of what is being done.
        of_a_command: the command line prints here; a function that a script calls says nothing
            where its output is neither a terminal nor a notebook.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        self.results_only = False
        self.of_a_command = False

    @property
    def shows_work(self) -> bool:
        """Whether what is being done is shown."""
        watched = self.of_a_command or self.is_terminal or self.is_jupyter
        return watched and not self.results_only

    def say(self, text: str) -> None:
        """Prints a line that is no result: what is being done, or how far it is."""
        if text and self.shows_work:
            self.print(text, soft_wrap=True, highlight=False)
            # Whoever reads a pipe or a file sees it now, not when a buffer is full.
            self.file.flush()

    def tell(self, text: str) -> None:
        """Prints a line of a result, however long."""
        self.print(text, soft_wrap=True, highlight=False)

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


class InNotebooks(ABC):
    """The last value of a notebook's cell, shown as its verb shows it."""

    @abstractmethod
    def render(self) -> RenderableType:
        """As the verb shows it."""

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


def show(result: Result, as_json: bool) -> None:
    """Prints a result, as one line of JSON or as its module renders it."""
    report(result, as_json, lambda _: result.render())


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

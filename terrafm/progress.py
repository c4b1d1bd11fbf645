"""What is being done, while it is.

A bar or a spinner in a terminal, a line that is written anew in a notebook, plain lines where the
output of a command is neither.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from terrafm.terminal import PlainConsole, shown_text
from terrafm.units import duration

# Between two lines where the output is no terminal.
_SECONDS = 10.0
# Between two updates of a notebook: each is a message to the browser.
_NOTEBOOK_SECONDS = 0.5
_BAR = 24


class Advance(Protocol):
    """Moves the bar; a line of metrics.jsonl adds loss and speed."""

    def __call__(self, done: int, total: int, line: dict[str, Any] | None = None) -> None:
        """Shows `done` of `total`."""
        ...


@contextmanager
def progress_bar(console: PlainConsole, unit: str, doing: str = "") -> Iterator[Advance]:
    """A bar that is gone when the block ends; lines every few seconds where there is no terminal.

    Enter it before what takes seconds to import: the user then sees at once what is done.

    Args:
        console: where it is drawn; nothing is where nobody looks (`PlainConsole.shows_work`).
        unit: what is counted.
        doing: what is being done, said at once.
    """
    if not console.shows_work:
        yield _ignore
        return
    if console.is_jupyter:
        with _notebook_line() as write:
            write(doing)
            yield _Counter(write, unit)
        return
    console.say(doing)
    if not console.is_terminal:
        yield _Lines(console, unit)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(unit, total=None, note="")

        def advance(done: int, total: int, line: dict[str, Any] | None = None) -> None:
            bar.update(task, completed=done, total=total, note=_note(line))

        yield advance


@contextmanager
def working(console: PlainConsole, doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner with words, for work whose length is not known; a line where there is no terminal.

    Yields:
        What says that something else is done now.
    """
    if console.is_jupyter and console.shows_work:
        with _notebook_line() as write:
            write(doing)
            yield write
        return
    if console.is_terminal and console.shows_work:
        # A status reads markup in a str, whatever the console does.
        with console.status(Text(doing)) as status:
            yield lambda text: status.update(Text(text))
        return
    console.say(doing)
    yield console.say


def _ignore(done: int, total: int, line: dict[str, Any] | None = None) -> None:
    """Where only results are wanted."""


@contextmanager
def _notebook_line() -> Iterator[Callable[[str], None]]:
    """A line under a notebook's cell that is written anew, and is empty when the block ends.

    rich would need ipywidgets for it, and warns without.
    """
    from IPython.display import Pretty, display

    line = display(Pretty(""), display_id=True)
    try:
        yield lambda text: line.update(Pretty(shown_text(text)))
    finally:
        line.update(Pretty(""))


class _Counter:
    """Progress under a notebook's cell."""

    def __init__(self, write: Callable[[str], None], unit: str) -> None:
        self._write = write
        self._unit = unit
        self._began: tuple[float, int] | None = None
        self._told_at = 0.0

    def __call__(self, done: int, total: int, line: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if self._began is None:
            # What was done before says nothing about the rest's speed.
            self._began = now, done
        if done < total and now - self._told_at < _NOTEBOOK_SECONDS:
            return
        self._told_at = now
        filled = round(_BAR * done / max(total, 1))
        bar = "█" * filled + "░" * (_BAR - filled)
        left = _time_left(now - self._began[0], done - self._began[1], total - done)
        self._write(f"{bar} {done}/{total} {self._unit}  {left}  {_note(line)}".rstrip())


class _Lines:
    """Progress as lines of an output that is no terminal: of a job, or in a file."""

    def __init__(self, console: PlainConsole, unit: str) -> None:
        self._console = console
        self._unit = unit
        self._last_done = -1
        self._told_at = 0.0
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, line: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if done == self._last_done or (done < total and now - self._told_at < _SECONDS):
            return
        self._last_done, self._told_at = done, now
        began, before = self._first
        left = _time_left(now - began, done - before, total - done)
        words = [f"{done}/{total} {self._unit}", _note(line), left]
        self._console.say("  ".join(word for word in words if word))


def _time_left(seconds: float, done: int, missing: int) -> str:
    """Such as "about 12 s left"; nothing where it cannot be told.

    Args:
        seconds: since the work that is timed began.
        done: in that time.
        missing: what is left to do.
    """
    if done <= 0 or missing <= 0:
        return ""
    return f"about {duration(seconds / done * missing)} left"


def _note(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    words = [f"loss {line['loss']:.3f}"] if line.get("loss") is not None else []
    words.append(f"{line['tiles_per_second']:.1f} tiles/s")
    if line.get("bottleneck", "compute") != "compute":
        words.append(f"{line['bottleneck']} {line['bottleneck_share']:.0%} of the time")
    if best := line.get("best"):
        words.append(f"best {best['value']:.3g} at {best['step']}")
    return "  ".join(words)

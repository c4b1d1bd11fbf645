"""What is being done, while it is: a bar or a spinner in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from terrafm.terminal import PlainConsole

# Between two lines where the output is no terminal.
_SECONDS = 10.0


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
        console: where it is drawn; nothing is where it takes results only.
        unit: what is counted.
        doing: what is being done, said at once.
    """
    if console.results_only:
        yield _ignore
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
    if console.is_terminal and not console.results_only:
        # A status reads markup in a str, whatever the console does.
        with console.status(Text(doing)) as status:
            yield lambda text: status.update(Text(text))
        return
    console.say(doing)
    yield console.say


def _ignore(done: int, total: int, line: dict[str, Any] | None = None) -> None:
    """Where only results are wanted."""


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
        words = [f"{done}/{total} {self._unit}", _note(line), self._time_left(now, done, total)]
        self._console.say("  ".join(word for word in words if word))

    def _time_left(self, now: float, done: int, total: int) -> str:
        began, before = self._first or (now, done)
        if done <= before or done >= total:
            return ""
        seconds = (now - began) / (done - before) * (total - done)
        return f"about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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

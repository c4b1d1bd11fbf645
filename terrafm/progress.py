"""One clean progress bar: in the terminal, in a notebook, and as lines where a job has none."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from terrafm.clusters.versions import JOB_VARIABLE
from terrafm.terminal import shown_text

# Between two lines of a job.
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
def progress_bar(console: Console, unit: str) -> Iterator[Advance]:
    """A bar that is gone when the block ends.

    Args:
        console: where it is drawn; where that is no terminal nothing appears, but for a line
            every few seconds in a job, whose output somebody follows.
        unit: what is counted.
    """
    if os.environ.get(JOB_VARIABLE) and not console.is_terminal:
        yield _Lines(console, unit)
        return
    if console.is_jupyter:
        with _notebook_line() as write:
            yield _Counter(write, unit)
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
def activity(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Says in words what is being done, until the block ends.

    Args:
        console: where it is said; where nobody watches, nothing is.
        text: what is being done at first.
    """
    if console.is_jupyter:
        with _notebook_line() as write:
            write(text)
            yield write
        return
    # A status reads markup in a str, whatever the console does.
    with console.status(Text(text)) as status:
        yield lambda words: status.update(Text(words))


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
        left = _left(now - self._began[0], done - self._began[1], total - done)
        self._write(f"{bar} {done}/{total} {self._unit}  {left}  {_note(line)}".rstrip())


def _left(seconds: float, done: int, missing: int) -> str:
    """Time that is left, such as 0:12; nothing where it cannot be told."""
    if done <= 0 or missing <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * missing), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} left"


class _Lines:
    """Progress of a job, as lines of its output."""

    def __init__(self, console: Console, unit: str) -> None:
        self._console = console
        self._unit = unit
        self._last_done = -1
        self._told_at = 0.0

    def __call__(self, done: int, total: int, line: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if done == self._last_done or (done < total and now - self._told_at < _SECONDS):
            return
        self._last_done, self._told_at = done, now
        text = f"{done}/{total} {self._unit}  {_note(line)}".rstrip()
        self._console.print(text, soft_wrap=True, highlight=False)


def _note(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    loss = f"loss {line['loss']:.3f}  " if line.get("loss") is not None else ""
    best = line.get("best")
    choice = f"  best {best['value']:.3g} at {best['step']}" if best else ""
    return f"{loss}{line['tiles_per_second']:.1f} tiles/s{choice}"

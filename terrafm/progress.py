"""One clean progress bar for the terminal; lines now and then where a job has none."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from terrafm.clusters.versions import JOB_VARIABLE

# Between two lines of a job.
_SECONDS = 10.0


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

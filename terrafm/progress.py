"""One clean progress bar for the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Moves the bar; a line of metrics.jsonl adds loss and speed."""

    def __call__(self, done: int, total: int, line: dict[str, Any] | None = None) -> None:
        """Shows `done` of `total`."""
        ...


@contextmanager
def progress_bar(console: Console, unit: str) -> Iterator[Advance]:
    """A bar that is gone when the block ends.

    Args:
        console: where it is drawn; nothing appears where that is no terminal.
        unit: what is counted.
    """
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
            note = ""
            if line is not None:
                loss = f"loss {line['loss']:.3f}  " if line.get("loss") is not None else ""
                note = f"{loss}{line['tiles_per_second']:.1f} tiles/s"
            bar.update(task, completed=done, total=total, note=note)

        yield advance

"""SIGTERM ends a command as Ctrl-C does, with one line: what it has started ends with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM
"""The exit code that shells give a process which SIGTERM has ended."""


class TerminatedError(SystemExit):
    """Raised in the main thread, wherever it is, so that every block ends in order."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def ends_by_sigterm() -> Iterator[None]:
    """Raises `TerminatedError` in this block on SIGTERM; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise TerminatedError

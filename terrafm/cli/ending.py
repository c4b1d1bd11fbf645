"""SIGTERM ends a command as Ctrl-C does, with one line: what it has started ends with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from terrafm.errors import TerraFMError

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
    came = False

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal came
        came = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except TerraFMError:
        # What is said of it: a lease that was lost has interrupted the command.
        raise
    except BaseException:
        if came:
            # Ray's calls that wait answer with an exit of their own, of code 1.
            raise TerminatedError from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

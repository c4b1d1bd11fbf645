"""SIGTERM ends a command as Ctrl-C does, with one line: what it has started ends with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from terrafm.errors import TerraFMError
from terrafm.shell import command_line

TERMINATED = 128 + signal.SIGTERM
"""The exit code that shells give a process which SIGTERM has ended."""


# Verbs that take up what lies there, and what has to be added for it.
_GOES_ON: dict[str, tuple[str, ...]] = {
    "demo": (),
    "ingest": (),
    "pretrain": (),
    "embed": (),
    "sweep": ("--resume",),
}


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


def was_interrupted(end: BaseException) -> bool:
    """Whether Ctrl-C is why a command ends: the command line turns it into an exit of its own."""
    cause: BaseException | None = end
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__context__
    return False


def command_to_go_on(words: Sequence[str]) -> str | None:
    """The command that takes up what an interrupted one has done; None where none does.

    Args:
        words: arguments of `terrafm`.
    """
    added = _GOES_ON.get(words[0]) if words else None
    scores = words[:1] == ["evaluate"] and words[1:2] in (["compare"], ["table"])
    if scores and any(w.startswith("--features") for w in words):
        # Features that are computed are kept there.
        added = ()
    if added is None or "--dry-run" in words:
        return None
    return command_line("terrafm", *words, *(word for word in added if word not in words))

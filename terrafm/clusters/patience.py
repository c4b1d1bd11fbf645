"""Waits for a Ray that starts on a busy machine, as long as it is alive."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray

logger = logging.getLogger(__name__)

_GCS_WAIT = "RAY_gcs_server_port_wait_time_s"
_WAIT_SECONDS = 600.0
_TELL_AFTER_SECONDS = 20.0
_TELL_EVERY_SECONDS = 60.0
_POLL_SECONDS = 0.5


@contextmanager
def patient_start() -> Iterator[None]:
    """Has Ray's start in this block take ten minutes where it needs them.

    Ray gives its raylet 30 s to come up and has no setting for it: the question that it repeats
    for so long is answered here once the raylet is there.
    """
    asked = ray._private.services.get_node
    given = os.environ.get(_GCS_WAIT)
    # Of the GCS, which comes first, Ray itself sees whether it is alive.
    os.environ.setdefault(_GCS_WAIT, f"{_WAIT_SECONDS:.0f}")
    ray._private.services.get_node = patient(asked, _raylet_lives)
    try:
        yield
    finally:
        ray._private.services.get_node = asked
        if given is None:
            os.environ.pop(_GCS_WAIT, None)


def patient(
    ask: Callable[..., dict[str, Any]], lives: Callable[[], bool], poll: float = _POLL_SECONDS
) -> Callable[..., dict[str, Any]]:
    """Wraps a question for a node: while its raylet lives it is asked again, and that is said.

    Args:
        ask: raises RuntimeError as long as the node is not known.
        lives: whether there is a raylet that may still become known.
        poll: seconds between two questions.
    """

    def ask_again(*arguments: Any) -> dict[str, Any]:
        began = time.monotonic()
        tell_at = _TELL_AFTER_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                waited = time.monotonic() - began
                if waited > _WAIT_SECONDS or not lives():
                    raise
            if waited > tell_at:
                logger.warning("Ray is still starting after %.0f s: this machine is busy", waited)
                tell_at += _TELL_EVERY_SECONDS
            time.sleep(poll)

    return ask_again


def _raylet_lives() -> bool:
    """Whether this process has started a raylet that has not ended."""
    for child in psutil.Process().children():
        try:
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            continue
    return False

"""Waits for a Ray that starts on a busy machine, as long as it is alive."""

from __future__ import annotations

import inspect
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psutil
import ray
from ray._raylet import (  # type: ignore[attr-defined]
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    RUNTIME_ENV_AGENT_PORT_NAME,
    persist_port,
)

from terrafm.clusters.local import LOOPBACK

logger = logging.getLogger(__name__)

_GCS_WAIT = "RAY_gcs_server_port_wait_time_s"
# Parameter -> the name under which an agent leaves the port it has chosen.
_AGENT_PORTS = {
    "metrics_agent_port": METRICS_AGENT_PORT_NAME,
    "metrics_export_port": METRICS_EXPORT_PORT_NAME,
    "runtime_env_agent_port": RUNTIME_ENV_AGENT_PORT_NAME,
    "dashboard_agent_listen_port": DASHBOARD_AGENT_LISTEN_PORT_NAME,
}
_WAIT_SECONDS = 600.0
_TELL_AFTER_SECONDS = 20.0
_TELL_EVERY_SECONDS = 60.0
_POLL_SECONDS = 0.5


@contextmanager
def patient_start() -> Iterator[None]:
    """Has Ray's start in this block take ten minutes where it needs them.

    Ray gives its raylet 30 s to come up and has no setting for it: the question that it repeats
    for so long is answered here once the raylet is there. The raylet in turn gives its agents 15 s
    to choose their ports, and ends where they take longer (Ray 2.60): they are given ports,
    and the files in which it looks for what they chose are there before it.
    """
    services, parameters = ray._private.services, ray._private.parameter.RayParams
    asked, started = services.get_node, services.start_raylet
    given = os.environ.get(_GCS_WAIT)
    # Of the GCS, which comes first, Ray itself sees whether it is alive.
    os.environ.setdefault(_GCS_WAIT, f"{_WAIT_SECONDS:.0f}")
    services.get_node = patient(asked, _raylet_lives)
    services.start_raylet = partial(_start_raylet, started)
    ray._private.parameter.RayParams = partial(_with_ports, parameters)
    try:
        yield
    finally:
        services.get_node, services.start_raylet = asked, started
        ray._private.parameter.RayParams = parameters
        if given is None:
            os.environ.pop(_GCS_WAIT, None)


def _with_ports(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Ray's parameters of a node, in which no agent has to choose a port."""
    with ExitStack() as held:
        for name in _AGENT_PORTS:
            if not options.get(name):
                probe = held.enter_context(socket.socket())
                probe.bind((LOOPBACK, 0))
                options[name] = probe.getsockname()[1]
    return make(*arguments, **options)


def _start_raylet(start: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Starts a raylet that finds the ports of its agents where they will leave them."""
    given = inspect.signature(start).bind(*arguments, **options).arguments
    for name, left_as in _AGENT_PORTS.items():
        if port := given.get(name):
            persist_port(given["session_dir"], given["node_id"], left_as, port)
    return start(*arguments, **options)


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

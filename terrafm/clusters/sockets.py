"""What processes listen on, and how a token may be seen from outside."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from terrafm.clusters.dashboard import is_loopback

# Names of Ray's own processes, and a word of their command lines; the first that fits counts.
_KINDS = (
    ("gcs_server", "GCS"),
    ("raylet/raylet", "raylet"),
    ("ray/dashboard/dashboard.py", "dashboard"),
    ("ray::DashboardAgent", "dashboard's agent"),
    ("ray::RuntimeEnvAgent", "runtime environments"),
    ("ray/autoscaler", "autoscaler"),
    ("ray.util.client.server", "Ray client"),
    ("ray::RayTrainWorker", "training worker"),
    ("ray::", "worker"),
    ("ray_jobs", "driver"),
)


@dataclass(frozen=True)
class Socket:
    """A listening socket.

    Attributes:
        kind: the part of Ray that it belongs to.
        pid: its process.
        host: address it is bound to.
        port: its port.
    """

    kind: str
    pid: int
    host: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach it, as far as the machine goes."""
        return not is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind} {host}:{self.port}"


def listening(processes: Iterable[psutil.Process]) -> list[Socket]:
    """TCP sockets of these processes; those that have ended meanwhile have none."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            kind = _kind(" ".join(process.cmdline()))
            found += [
                Socket(kind, process.pid, connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    return found


def shown_in(processes: Iterable[psutil.Process], secret: str) -> list[int]:
    """Numbers of the processes whose command line holds a secret."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if any(secret in word for word in process.cmdline()):
                found.append(process.pid)
    return found


def _kind(line: str) -> str:
    return next((kind for word, kind in _KINDS if word in line), "other")

"""Checks the machine that the command runs on: software, limits, what others have left behind.

The first findings need the standard library and psutil only, so that they are told at once; what
takes seconds to load is tried in a child process meanwhile (`probe`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from terrafm.clusters.accelerator import Probe
from terrafm.clusters.findings import FAULT, OK, WARNING, Finding
from terrafm.clusters.tested import TESTED, TESTED_PYTHON
from terrafm.errors import TerraFMError
from terrafm.storage import read_bytes
from terrafm.units import human_bytes

_GIB = 1 << 30
# `terrafm demo` and a run of the tiny model need about two, beside the system.
_LEAST_MEMORY, _ENOUGH_MEMORY = 2 * _GIB, 6 * _GIB
# Nothing is written there: it is looked at.
_SHARED_MEMORY = "/dev/shm"  # nosec B108
_ENOUGH_SHARED = 1 * _GIB
_LEAST_DISK, _ENOUGH_DISK = 2 * _GIB, 20 * _GIB
# Ray stops making objects on a disk that is fuller than this.
_FULLEST = 0.95
_LEAST_FILES, _ENOUGH_FILES = 1024, 65_536
# What `ray start --head` takes where nothing else is said.
RAY_PORTS = {6379: "GCS", 8265: "dashboard", 10001: "Ray client", 52365: "dashboard's agent"}
_RAY_PROCESSES = ("gcs_server", "raylet", "ray::", "ray/dashboard", "ray.util.client")
_RENDEZVOUS = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "TORCHELASTIC_RUN_ID",
)
# How to reach a cluster, which people set on purpose.
_MEANT = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def examine_machine(store: str | None = None) -> Iterator[Finding]:
    """Checks this machine; the first findings come at once, the last when PyTorch is loaded.

    Args:
        store: URI of a prefix or folder to write, read, list and delete in.

    Yields:
        A finding for each check.

    Raises:
        UsageError: the URI is none.
    """
    with Probe() as probe:
        yield from software()
        yield from hardware()
        yield from environment(os.environ, set(psutil.net_if_addrs()))
        yield from ports()
        if store is not None:
            # Its clients take a while to load.
            from terrafm.clusters.store import examine_store

            yield from examine_store(store)
        yield from probe.findings()


def software() -> Iterator[Finding]:
    """Python, and every library that is needed, against what is allowed and what was tested."""
    own = platform.python_version()
    try:
        about = importlib.metadata.metadata("terrafm")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(OK, f"Python {own} ({sys.executable})")
        yield Finding(
            WARNING,
            "terrafm runs from its source and is not installed, so that versions cannot be held "
            "against what it needs: pip install -e .",
        )
        return
    yield judge_python(own, str(about["Requires-Python"] or ""))
    needed = [Requirement(line) for line in importlib.metadata.requires("terrafm") or ()]
    yield from judge_packages([need for need in needed if _applies(need)], installed_versions())


def judge_python(own: str, allowed: str) -> Finding:
    """Of Python's version, such as "3.11.7", and a bound such as ">=3.11"."""
    if own not in SpecifierSet(allowed, prereleases=True):
        return Finding(FAULT, f"Python {own} is not {allowed}: install another, such as 3.11")
    if own.rpartition(".")[0] != TESTED_PYTHON:
        return Finding(
            WARNING,
            f"Python {own} is allowed, and the tests run with {TESTED_PYTHON}: prefer that one",
        )
    return Finding(OK, f"Python {own}, as tested ({sys.executable})")


def installed_versions() -> dict[str, str]:
    """Name in lower case -> version, without what a build adds behind a +."""
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        # The first one on the path is imported.
        found.setdefault(canonicalize_name(name), package.version.partition("+")[0])
    return found


def judge_packages(needed: list[Requirement], found: Mapping[str, str]) -> Iterator[Finding]:
    """Of the libraries that are needed, and the versions that are there."""
    as_tested, other = 0, []
    for need in sorted(needed, key=lambda one: one.name.lower()):
        name = canonicalize_name(need.name)
        version, tested = found.get(name), TESTED.get(name)
        wanted = f"{need.name}{need.specifier}"
        if version is None:
            yield Finding(FAULT, f"{need.name} is missing: pip install '{wanted}'")
        elif not need.specifier.contains(version, prereleases=True):
            yield Finding(
                FAULT, f"{need.name} {version} is none of those allowed: pip install '{wanted}'"
            )
        elif tested is not None and version != tested:
            other.append(f"{need.name} {version} ({tested})")
        else:
            as_tested += 1
    if other:
        yield Finding(
            WARNING,
            f"allowed, and other than tested (in brackets): {', '.join(other)}; for those that "
            "were tested: pip install -r cluster/requirements.txt",
        )
    if as_tested:
        yield Finding(OK, f"{as_tested} libraries have the versions that were tested")


def _applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


def hardware() -> Iterator[Finding]:
    """Processors, memory, shared memory, disk and file limits of this machine or container."""
    yield judge_processors(len(os.sched_getaffinity(0)), allowed_cpus(), os.getloadavg()[0])
    memory = psutil.virtual_memory()
    limit = memory_limit()
    total = memory.total if limit is None else min(memory.total, limit)
    yield judge_memory(min(memory.available, total), total, limited=total < memory.total)
    with suppress(OSError):
        yield judge_shared_memory(shutil.disk_usage(_SHARED_MEMORY).total)
    for what, folder in {"temporary files": tempfile.gettempdir(), "this folder": "."}.items():
        yield judge_disk(what, folder)
    yield judge_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judge_processors(count: int, allowed: float | None, load: float) -> Finding:
    """Of the CPUs that the process may run on, a container's share, and the load."""
    text = f"{count} CPUs"
    if allowed is not None and allowed < count:
        return Finding(
            WARNING,
            f"the container may use {allowed:g} of {count} CPUs: set OMP_NUM_THREADS="
            f"{max(1, int(allowed))}, or threads wait for each other",
        )
    if load > 1.5 * count:
        return Finding(
            WARNING,
            f"{text}, and others compute here (load {load:.1f}): all takes longer, and what is "
            "measured is slower than it could be",
        )
    return Finding(OK, f"{text}, load {load:.1f}")


def judge_memory(available: float, total: float, limited: bool = False) -> Finding:
    """Of the bytes that are free, and there in all."""
    whose = "the container's limit" if limited else "this machine"
    text = f"{human_bytes(available)} of memory are free, of {human_bytes(total)} ({whose})"
    if available < _LEAST_MEMORY:
        return Finding(FAULT, f"{text}: no run fits; end what else runs, or take more memory")
    if available < _ENOUGH_MEMORY:
        return Finding(
            WARNING,
            f"{text}: enough for small runs; terrafm pretrain --dry-run says what one needs",
        )
    return Finding(OK, text)


def judge_shared_memory(total: float) -> Finding:
    """Of the bytes that /dev/shm may hold."""
    text = f"{_SHARED_MEMORY} holds {human_bytes(total)}"
    if total < _ENOUGH_SHARED:
        return Finding(
            WARNING,
            f"{text}: Ray puts batches there, and uses the slower disk where it is too small; "
            "start the container with --shm-size=8g, or mount an emptyDir with medium Memory",
        )
    return Finding(OK, text)


def judge_disk(what: str, folder: str) -> Finding:
    """Whether a folder can be written, and has room."""
    place = os.path.abspath(folder)
    other = "name another place in TMPDIR" if folder != "." else "go to another folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding(FAULT, f"{place} ({what}) cannot be written ({error.strerror}): {other}")
    text = f"{human_bytes(usage.free)} are free in {place} ({what})"
    used = 1 - usage.free / usage.total
    if usage.free < _LEAST_DISK:
        return Finding(FAULT, f"{text}: make room, or {other}")
    if folder != "." and used > _FULLEST:
        return Finding(
            FAULT,
            f"{text}, and its disk is {100 * used:.0f} % full: Ray stops at "
            f"{100 * _FULLEST:.0f} %; make room, or {other}",
        )
    if usage.free < _ENOUGH_DISK:
        return Finding(WARNING, f"{text}: little for checkpoints and shards; {other}")
    return Finding(OK, text)


def judge_files(soft: int, hard: int) -> Finding:
    """Of the files that a process may open."""
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return Finding(OK, "a process may open as many files as the head of a cluster needs")
    text = f"a process may open {soft:,} files"
    unbounded = hard in (resource.RLIM_INFINITY, -1)
    raise_it = (
        f"ulimit -n {_ENOUGH_FILES}"
        if unbounded or hard >= _ENOUGH_FILES
        else f"raise nofile in /etc/security/limits.conf (the hard limit is {hard:,})"
    )
    if soft < _LEAST_FILES:
        return Finding(FAULT, f"{text}: Ray's processes run out of them; {raise_it}")
    if soft < _ENOUGH_FILES // 8:
        return Finding(
            WARNING, f"{text}: enough here, too few for the head of a cluster; {raise_it}"
        )
    return Finding(OK, text)


def allowed_cpus() -> float | None:
    """CPUs that the container may use; None where it has no limit."""
    with suppress(OSError, ValueError, TerraFMError):
        quota, period = read_bytes("/sys/fs/cgroup/cpu.max").split()
        return None if quota == b"max" else int(quota) / int(period)
    with suppress(OSError, ValueError, TerraFMError):
        quota, period = (
            read_bytes(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")
        )
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


def memory_limit() -> int | None:
    """Bytes that the container may hold; None where it has no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError, TerraFMError):
            return int(read_bytes(f"/sys/fs/cgroup/{name}"))
    return None


def environment(variables: Mapping[str, str], interfaces: set[str]) -> Iterator[Finding]:
    """Variables that are left from something else, or lead elsewhere.

    Args:
        variables: of the environment.
        interfaces: names of the network interfaces.
    """
    bad = list(_left_over(variables)) + list(_network(variables, interfaces))
    yield from bad
    if not bad:
        yield Finding(OK, "no variable of Ray, torchrun or a proxy is set that leads elsewhere")


def _left_over(variables: Mapping[str, str]) -> Iterator[Finding]:
    address = variables.get("RAY_ADDRESS")
    if address:
        yield Finding(
            WARNING,
            f"RAY_ADDRESS={address}: commands run on that cluster; for this machine alone: "
            "unset RAY_ADDRESS",
        )
    path = variables.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).expanduser().is_file():
        yield Finding(
            FAULT,
            f"RAY_AUTH_TOKEN_PATH={path}: there is no such file; unset RAY_AUTH_TOKEN_PATH, or "
            "name the token of the cluster",
        )
    others = sorted(n for n in variables if n.startswith("RAY_") and n not in _MEANT)
    if others:
        yield Finding(
            WARNING,
            f"set from outside, and they change how Ray behaves: {', '.join(others)}; if nobody "
            f"means them: unset {' '.join(others)}",
        )
    rendezvous = [name for name in _RENDEZVOUS if name in variables]
    if rendezvous:
        yield Finding(
            WARNING,
            f"left from torchrun or another launcher: {', '.join(rendezvous)}; workers may look "
            f"for each other there: unset {' '.join(rendezvous)}",
        )
    if variables.get("CUDA_VISIBLE_DEVICES") == "":
        yield Finding(
            WARNING, "CUDA_VISIBLE_DEVICES is empty: no GPU is used; unset CUDA_VISIBLE_DEVICES"
        )


def _network(variables: Mapping[str, str], interfaces: set[str]) -> Iterator[Finding]:
    # Lower case counts too, and its value may hold a password: it is not shown.
    spelled = {name.upper(): name for name in variables if variables[name]}
    proxies = [spelled[name] for name in _PROXIES if name in spelled]
    direct = variables.get(spelled.get("NO_PROXY", ""), "").replace(" ", "").split(",")
    if proxies and not {"*", "127.0.0.1"} & set(direct):
        yield Finding(
            WARNING,
            f"{', '.join(proxies)} is set: stores are reached through the proxy, clusters never; "
            "what runs on this machine asks it too: export NO_PROXY=127.0.0.1,localhost",
        )
    for name in _INTERFACES:
        value = variables.get(name, "")
        # NCCL takes prefixes, exact names behind "=", and exclusions behind "^".
        names = [one for one in value.split(",") if one] if not value.startswith("^") else []
        missing = [n for n in names if not any(i.startswith(n.lstrip("=")) for i in interfaces)]
        if missing:
            known = ", ".join(sorted(interfaces))
            yield Finding(
                FAULT,
                f"{name}={value}: this machine has no interface {', '.join(missing)}, but {known}; "
                f"unset {name}, or name one of them",
            )


def ports() -> Iterator[Finding]:
    """Who holds the ports that a cluster's head takes."""
    taken = {port: holder for port in RAY_PORTS if (holder := _holder(port)) is not None}
    own = {port: who for port, who in taken.items() if any(w in who for w in _RAY_PROCESSES)}
    if own:
        yield Finding(
            WARNING,
            f"a Ray runs on this machine (ports {', '.join(map(str, sorted(own)))}): commands "
            "start one of their own beside it, unless RAY_ADDRESS names it; a second `ray "
            "start` needs other ports",
        )
    for port, who in sorted(taken.items()):
        if port not in own:
            yield Finding(
                WARNING,
                f"port {port}, which `ray start --head` takes for the {RAY_PORTS[port]}, is held "
                f"by {who}: give Ray another",
            )
    if not taken:
        yield Finding(OK, f"Ray's usual ports are free ({', '.join(map(str, RAY_PORTS))})")


def _holder(port: int) -> str | None:
    """The command that listens there; None where nobody does."""
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return _command(connection.pid)
        return None
    with socket.socket() as probe:
        probe.settimeout(1)
        return "another user's process" if probe.connect_ex(("127.0.0.1", port)) == 0 else None


def _command(pid: int | None) -> str:
    with suppress(psutil.Error):
        if pid is not None:
            process = psutil.Process(pid)
            return f"{' '.join(process.cmdline())[:60] or process.name()} (process {pid})"
    return "another user's process"

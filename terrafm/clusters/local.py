"""A cluster on this machine: up, status, down."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from terrafm.clusters import state
from terrafm.clusters.dashboard import Dashboard
from terrafm.clusters.token import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE, Token, read_token
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage.limits import DOCUMENT_BYTES
from terrafm.storage.local import read_regular

logger = logging.getLogger(__name__)

# Of Ray in a process that only this machine may reach. The name is Ray's: it turns off the rule
# that a loopback address stands for the machine's own.
LOOPBACK = "127.0.0.1"
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Metrics are the one thing that Ray serves to whoever asks. Dashboard and autoscaler have no switch
# for theirs: a port that cannot be is one that does not open.
NO_METRICS = {
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
}

_LOG = "keeper.log"
# What Ray says of a node whose raylet has died at its start.
_SLOW = "timed out during startup"
_TRIES = 4
_START_SECONDS = 600.0  # Where it ends before, that is seen at once.
_NODE_SECONDS = 60.0
_END_SECONDS = 10.0
_SMALLEST_STORE, _LARGEST_STORE = 100 * 2**20, 2 * 2**30


def up(workers: int, cpus: int) -> state.LocalCluster:
    """Starts a head and workers, which outlive this process.

    Args:
        workers: number of worker nodes.
        cpus: logical CPUs of each; the head has none.

    Raises:
        UsageError: one runs already, or the numbers make no cluster.
        TerraFMError: it did not start; nothing of it is left.
    """
    if workers < 1 or cpus < 1:
        raise UsageError("a cluster has at least one worker, and each worker one CPU")
    path = state.make_folder()
    with _only_one(path):
        if (old := state.read()) is not None:
            if old.keeper is not None:
                raise UsageError(
                    f"a local cluster runs already, at {old.dashboard_url or 'its start'}: "
                    "terrafm cluster down ends it"
                )
            _end(old)
        for left in reversed(range(_TRIES)):
            try:
                return _start(path / "token", workers, cpus)
            except _SlowNodeError as error:
                if not left:
                    raise
                logger.warning("%s; trying again", error)
    raise AssertionError("the last try returns or raises")


class _SlowNodeError(TerraFMError):
    """A node's agents took longer than the 15 s that Ray gives them: the machine is busy."""


def _start(token: Path, workers: int, cpus: int) -> state.LocalCluster:
    """One try."""
    state.make_token(token)
    cluster = state.LocalCluster("", "", str(token), state.make_scratch(), [])
    try:
        keeper = _start_keeper(cluster, workers, cpus)
        return _wait(keeper, _START_SECONDS + workers * _NODE_SECONDS)
    except BaseException:
        # Ctrl-C as well: nothing half started stays behind.
        _end(state.read() or cluster)
        raise


def down() -> int:
    """Ends the local cluster, if there is one.

    Returns:
        The number of processes that were ended.

    Raises:
        UsageError: there is none.
    """
    with _only_one(state.make_folder()):
        cluster = state.read()
        if cluster is None:
            raise UsageError("no local cluster runs: nothing to end")
        return _end(cluster)


def status() -> dict[str, Any]:
    """Describes the local cluster: address, dashboard_url, token_path, nodes.

    Raises:
        UsageError: none runs.
        TerraFMError: it runs and does not answer.
    """
    cluster = running()
    token = Token(read_token(Path(cluster.token_path)), cluster.token_path)
    entries = Dashboard(cluster.dashboard_url, token).nodes()
    nodes = [_node(entry["raylet"]) for entry in entries if entry.get("raylet")]
    return {
        "address": cluster.address,
        "dashboard_url": cluster.dashboard_url,
        "token_path": cluster.token_path,
        "nodes": sorted(nodes, key=lambda node: (not node["head"], node["name"])),
    }


def running() -> state.LocalCluster:
    """The local cluster.

    Raises:
        UsageError: none runs, or it is still starting.
    """
    cluster = state.read()
    if cluster is None or cluster.keeper is None:
        raise UsageError("no local cluster runs: terrafm cluster up --local starts one")
    if not cluster.dashboard_url:
        raise UsageError("the local cluster is still starting: ask again in a moment")
    return cluster


def _node(raylet: dict[str, Any]) -> dict[str, Any]:
    total = raylet.get("resourcesTotal", {})
    return {
        "node_id": raylet["nodeId"],
        "name": raylet["nodeName"],
        "head": bool(raylet["isHeadNode"]),
        "alive": raylet["state"] == "ALIVE",
        "address": raylet["nodeManagerAddress"],
        "cpus": total.get("CPU", 0),
        "gpus": total.get("GPU", 0),
    }


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with open(path / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another terrafm cluster up or down is at work in {path}: wait for it"
            ) from None
        yield


def _start_keeper(cluster: state.LocalCluster, workers: int, cpus: int) -> subprocess.Popen[bytes]:
    with open(os.open(state.folder() / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)) as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "terrafm.clusters.keeper",
             "--workers", str(workers), "--cpus", str(cpus),
             "--object-store-bytes", str(_object_store(workers + 1))],
            env=_environment(cluster), cwd=cluster.scratch, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    # It waits for its own record, so that a start cut short can be ended too.
    started = psutil.Process(keeper.pid).create_time()
    state.write(replace(cluster, processes=[[keeper.pid, started]]))
    return keeper


def _environment(cluster: state.LocalCluster) -> dict[str, str]:
    """Of all nodes: this process's, without what would have them join another cluster."""
    foreign = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    own = {k: v for k, v in os.environ.items() if k not in (*foreign, TOKEN_VARIABLE)}
    # The nodes run in another folder.
    paths = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    source = str(Path(__file__).resolve().parents[2])
    return {
        **own,
        **LOOPBACK_ONLY,
        **NO_METRICS,
        "PYTHONPATH": os.pathsep.join([*paths, source]),
        MODE_VARIABLE: "token",
        PATH_VARIABLE: cluster.token_path,
        state.FOLDER_VARIABLE: str(state.folder()),
        # Ray leaves the address of the newest cluster in a folder that all users share, and that
        # may be another's, or not be there at all.
        "RAY_TMPDIR": cluster.scratch,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its nodes are here: what Ray sends them by gRPC, metrics too, takes no proxy.
        "grpc_proxy": "",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # See terrafm.ray.runtime: at Ray's 15 a busy machine starves them.
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),  # noqa: SIM112
    }


def _object_store(nodes: int) -> int:
    """Bytes of shared memory for each node's objects."""
    # Ray's place for objects; no file of ours is made there.
    shared = "/dev/shm"  # nosec B108
    free = psutil.virtual_memory().available
    if os.path.isdir(shared):
        free = min(free, shutil.disk_usage(shared).free)
    return max(_SMALLEST_STORE, min(_LARGEST_STORE, int(0.3 * free / nodes)))


def _wait(keeper: subprocess.Popen[bytes], seconds: float) -> state.LocalCluster:
    """Until all nodes have started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        cluster = state.read()
        if cluster is not None and cluster.dashboard_url:
            return cluster
        if keeper.poll() is not None:
            words = _last_words()
            if _SLOW in words:
                raise _SlowNodeError(f"a node did not start in time, the machine is busy ({words})")
            raise TerraFMError(f"the local cluster did not start: {words}")
        time.sleep(0.2)
    raise TerraFMError(f"the local cluster did not start within {seconds:.0f} s: {_last_words()}")


def _last_words() -> str:
    """The last line that the keeper wrote, which is the reason of a failed start."""
    log = state.folder() / _LOG
    text = read_regular(str(log), DOCUMENT_BYTES).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it said nothing'} (all of it: {log})"


def _end(cluster: state.LocalCluster) -> int:
    """Ends what is left of a cluster, and forgets it."""
    family = cluster.family()
    if cluster.processes and (keeper := cluster.keeper) is not None:
        # It ends its nodes in order.
        with suppress(psutil.NoSuchProcess):
            keeper.terminate()
    _, left = psutil.wait_procs(family, timeout=_END_SECONDS)
    for process in left:
        # psutil asks first whether the number is still this process's.
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, left = psutil.wait_procs(left, timeout=_END_SECONDS)
    if left:
        numbers = ", ".join(str(process.pid) for process in left)
        raise TerraFMError(f"processes {numbers} of the local cluster do not end: try again")
    state.forget(cluster)
    return len(family)

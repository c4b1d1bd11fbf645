"""The process that holds the nodes of a local cluster: `python -m terrafm.clusters.keeper`.

`ray start` will not do: on Linux it takes a loopback address for the machine's own, and Ray then
listens on every interface. It ends as the nodes do, or with them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from terrafm.clusters import state
from terrafm.clusters.local import LOOPBACK
from terrafm.clusters.patience import patient_start

_RECORD_SECONDS = 10.0


def main(arguments: list[str] | None = None) -> None:
    """Starts head and workers, records them, and waits for SIGTERM or the end of the head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--object-store-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    record = _own_record()
    with patient_start():
        cluster = _start(options, record.scratch)
    try:
        own = psutil.Process()
        family = [own, *own.children(recursive=True)]
        state.write(
            state.LocalCluster(
                address=cluster.address,
                dashboard_url=f"http://{cluster.webui_url}",
                token_path=record.token_path,
                scratch=record.scratch,
                processes=[[process.pid, process.create_time()] for process in family],
            )
        )
        while not ended.wait(1.0) and not cluster.head_node.dead_processes():
            pass
    finally:
        cluster.shutdown()


def _own_record() -> state.LocalCluster:
    """The record, once it names this process: written by who started it, right afterwards."""
    deadline = time.monotonic() + _RECORD_SECONDS
    while time.monotonic() < deadline:
        record = state.read()
        if record is not None and [int(pid) for pid, _ in record.processes] == [os.getpid()]:
            return record
        time.sleep(0.05)
    sys.exit("no record names this process")


def _start(options: argparse.Namespace, scratch: str) -> Cluster:
    """Nodes that listen on loopback only."""
    # Ray opens its folder to everyone: within a private one nobody comes to it.
    temp_dir = str(Path(scratch) / "ray")
    shared = {
        "node_ip_address": LOOPBACK,
        "object_store_memory": options.object_store_bytes,
    }
    head = {
        "num_cpus": 0,  # The job's driver runs here, as on the head of a real cluster.
        "node_name": "head",
        "temp_dir": temp_dir,
        "include_dashboard": True,
        "dashboard_host": LOOPBACK,
        "dashboard_port": 0,
        # Nothing to scale: without the autoscaler and its port.
        "no_monitor": True,
    }
    # It leaves its address below RAY_TMPDIR, where drivers of jobs find it.
    cluster = Cluster(initialize_head=True, head_node_args=shared | head)
    for number in range(1, options.workers + 1):
        # Each with a folder of its own for packages, as hosts have: a node that needs one no more
        # would else remove it under the feet of another's job.
        cluster.add_node(
            **shared,
            num_cpus=options.cpus,
            node_name=f"worker-{number}",
            runtime_env_dir_name=f"runtime_resources_{number}",
        )
    return cluster


if __name__ == "__main__":
    main()

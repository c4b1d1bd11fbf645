"""Real Ray clusters of several nodes on this machine, and the faults that befall them."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

RAY = str(Path(sys.executable).with_name("ray"))


@contextmanager
def cluster(*cpus):
    """Nodes with these logical CPUs, the first one the head; yields the `Cluster`."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": cpus[0], "include_dashboard": False},
    )
    try:
        for number in cpus[1:]:
            made.add_node(num_cpus=number)
        yield made
    finally:
        made.shutdown()


def environment(made):
    """Of a command that joins the cluster.

    A Ray that this process started before turned token authentication on, here and in the
    cluster.
    """
    token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
    return {"RAY_ADDRESS": made.address, **token}


def drain(made, node, seconds):
    """A spot notice: the node will be taken away."""
    subprocess.run(
        [RAY, "drain-node", "--address", made.address, "--node-id", node.node_id,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
         "--deadline-remaining-seconds", str(seconds)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def lose(made, node):
    """kill -9 of everything on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    family = [raylet, *raylet.children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    made.remove_node(node, allow_graceful=False)


def training_workers(node=None):
    """Ray's training processes on this machine, oldest first; of one node where given."""
    if node is None:
        processes = psutil.process_iter()
    else:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        processes = raylet.children(recursive=True)
    found = []
    for process in processes:
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def wait_until(condition, what, process=None, seconds=180, log=None):
    """Waits for a condition; fails where the process ends before it, with what it printed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        if process is not None and process.poll() is not None:
            printed = "" if log is None else log.read_text()
            raise AssertionError(f"ended before {what}\n{printed}")
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")

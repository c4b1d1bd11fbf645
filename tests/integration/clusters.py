"""Real Ray clusters of several nodes on this machine, and the faults that befall them."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster

from terrafm.clusters.local import LOOPBACK_ONLY
from terrafm.clusters.state import make_token

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


@dataclass
class AutoscaledCluster:
    """A head whose autoscaler starts and ends nodes on this machine; all on loopback."""

    address: str
    environment: dict
    process: psutil.Process
    config: Path

    def allow(self, most):
        """Lets it have so many worker nodes from now on, as when machines can be had again."""
        config = json.loads(self.config.read_text())
        config["max_workers"] = config["available_node_types"]["spot"]["max_workers"] = most
        written = self.config.with_suffix(".new")
        written.write_text(json.dumps(config))
        # The autoscaler reads it every second.
        written.replace(self.config)

    def workers(self):
        """The raylets of nodes that the autoscaler has started, oldest first."""
        found = []
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                line = process.cmdline()
                if line and line[0].endswith("/raylet") and "--head" not in line:
                    found.append((process.create_time(), process, line))
        return [(process, _option(line, "--node_id")) for _, process, line in sorted(found)]


@contextmanager
def autoscaled_cluster(folder, cpus, most):
    """A head without CPUs and Ray's provider of nodes that are processes.

    Args:
        folder: a short path, for sockets.
        cpus: of each worker node.
        most: worker nodes.
    """
    address = f"127.0.0.1:{free_port()}"
    config = {
        "cluster_name": "fake", "max_workers": most, "idle_timeout_minutes": 0.2,
        "upscaling_speed": 100, "auth": {}, "docker": {},
        "provider": {
            "type": "external", "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": address,
            "module": "ray.autoscaler._private.fake_multi_node.node_provider."
                      "FakeMultiNodeProvider",
            "launch_multiple": True, "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {"resources": {"CPU": cpus}, "node_config": {}, "min_workers": 0,
                     "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    (folder / "fake.yaml").write_text(json.dumps(config))
    make_token(folder / "token")
    joining = {
        **LOOPBACK_ONLY, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }  # fmt: skip
    starting = {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }  # fmt: skip
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with open(folder / "head.log", "w") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus", "0", "--port",
             address.rpartition(":")[2], "--temp-dir", str(folder / "ray"),
             "--include-dashboard", "false", "--dashboard-port", "0",
             "--node-ip-address", "127.0.0.1",
             *head_ports(), "--object-store-memory", str(2**28),
             "--autoscaling-config", str(folder / "fake.yaml")],
            env=others | joining | starting, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    process = psutil.Process(head.pid)
    try:
        started = "Ray runtime started"
        log = folder / "head.log"
        wait_until(lambda: started in log.read_text(), started, head, 300, log)
        yield AutoscaledCluster(
            address, {"RAY_ADDRESS": address, **joining}, process, folder / "fake.yaml"
        )
    finally:
        family = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)


def head_ports():
    """Given to the head, which dies where its agents take longer than 15 s to choose."""
    names = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc",
             "runtime-env-agent")  # fmt: skip
    given = [word for name in names for word in (f"--{name}-port", str(free_port()))]
    return [*given, "--metrics-export-port", str(free_port())]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _option(line, name):
    return next(word.partition("=")[2] for word in line if word.startswith(f"{name}="))


def drain(made, node, seconds):
    """A spot notice: the node will be taken away."""
    drain_node(made.address, node.node_id, seconds)


def drain_node(address, node_id, seconds, environment=None):
    """The same for any cluster; environment: token and address rule, where it needs them."""
    subprocess.run(
        [RAY, "drain-node", "--address", address, "--node-id", node_id,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
         "--deadline-remaining-seconds", str(seconds)],
        check=True, capture_output=True, timeout=60,
        env={**os.environ, **(environment or {})},
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


def wait_until(condition, what, process=None, seconds=400, log=None):
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

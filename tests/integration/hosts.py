"""Hosts in network namespaces of this machine, joined by a link that can be cut; needs root."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

RAY = str(Path(sys.executable).with_name("ray"))
ADDRESSES = ("10.231.0.1", "10.231.0.2")
PORT = 6399
# As docs/elastic.md advises: a node that says nothing is given up after ten seconds.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


class TwoHosts:
    """Two namespaces with one address each.

    Args:
        name: prefix of their names.
    """

    def __init__(self, name):
        self.names = (f"{name}a", f"{name}b")

    def inside(self, host):
        """Prefix of a command that runs on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self):
        """The link is down from now on."""
        _ip("-n", self.names[1], "link", "set", "eth", "down")

    def mend(self):
        """The link is up again."""
        _ip("-n", self.names[1], "link", "set", "eth", "up")

    def start_ray(self, host, folder, cpus):
        """A Ray node, the head on host 0; without token, for nobody else can reach it."""
        place = ["--head", "--port", str(PORT), "--include-dashboard=false"]
        if host:
            place = ["--address", f"{ADDRESSES[0]}:{PORT}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= HEALTH_CHECKS
        subprocess.run(
            [*self.inside(host), RAY, "start", *place, "--node-ip-address", ADDRESSES[host],
             "--num-cpus", str(cpus), "--temp-dir", str(folder), "--object-store-memory",
             str(256 << 20)],
            check=True, capture_output=True, timeout=120,
            env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)},
        )  # fmt: skip

    def processes(self):
        """Everything that runs on the hosts."""
        names = set()
        for host in self.names:
            found = subprocess.run(
                ["ip", "netns", "pids", host], check=True, capture_output=True, text=True
            )
            names |= {int(pid) for pid in found.stdout.split()}
        return [psutil.Process(pid) for pid in names if psutil.pid_exists(pid)]


@contextmanager
def two_hosts():
    """Makes them; at the end what runs there is killed."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    hosts = TwoHosts(f"terrafm{uuid.uuid4().hex[:6]}")
    made = []
    try:
        for name in hosts.names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", "eth", "netns", made[0], "type", "veth",
            "peer", "name", "eth", "netns", made[1])  # fmt: skip
        for name, address in zip(made, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        if len(made) == len(hosts.names):
            _end(hosts)
        for name in made:
            _ip("netns", "del", name)


def _end(hosts):
    deadline = time.monotonic() + 30
    while (left := hosts.processes()) and time.monotonic() < deadline:
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)

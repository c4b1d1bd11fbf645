"""Hosts in network namespaces of this machine, with links that can be cut; needs root."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from commands import clean_environment

from terrafm.clusters.state import make_token

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6399
# As docs/elastic.md advises: a node that says nothing is given up after ten seconds.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


class Hosts:
    """Namespaces with one address each, joined by a router; a Ray cluster on them has a token.

    Args:
        name: prefix of their names.
        count: of hosts; the first is the head of the Ray cluster.
        folder: for Ray's sockets, a short path, and for the token.
    """

    def __init__(self, name, count, folder):
        self.names = [f"{name}{host}" for host in range(count)]
        self.router = f"{name}r"
        self.addresses = [f"10.231.{host}.1" for host in range(count)]
        self.folder = folder
        make_token(folder / "token")
        self.environment = {
            "RAY_ADDRESS": f"{self.addresses[0]}:{PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }

    def connect(self):
        """Makes them, with their links."""
        _ip("netns", "add", self.router)
        forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        _ip("netns", "exec", self.router, "sh", "-c", forwarding)
        for host, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("link", "add", "eth", "netns", name, "type", "veth",
                "peer", "name", f"port{host}", "netns", self.router)  # fmt: skip
            _ip("-n", self.router, "addr", "add", f"10.231.{host}.254/24", "dev", f"port{host}")
            _ip("-n", self.router, "link", "set", f"port{host}", "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", "eth")
            for device in ("eth", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", f"10.231.{host}.254")

    def inside(self, host):
        """Prefix of a command that runs on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self, host):
        """The host's link is down from now on."""
        _ip("-n", self.router, "link", "set", f"port{host}", "down")

    def mend(self, host):
        """The host's link is up again."""
        _ip("-n", self.router, "link", "set", f"port{host}", "up")

    def start_ray(self, host, cpus):
        """A Ray node; the head on host 0."""
        place = ["--head", "--port", str(PORT), "--include-dashboard=false"]
        if host:
            place = ["--address", f"{self.addresses[0]}:{PORT}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= HEALTH_CHECKS | self.environment | {"RAY_TMPDIR": str(self.folder)}
        del environment["RAY_ADDRESS"]
        subprocess.run(
            [*self.inside(host), RAY, "start", *place, "--node-ip-address", self.addresses[host],
             "--num-cpus", str(cpus), "--temp-dir", str(self.folder), "--object-store-memory",
             str(256 << 20)],
            check=True, capture_output=True, timeout=120, env=environment,
        )  # fmt: skip

    def start(self, arguments, log):
        """A command of terrafm on the head, its output in a file."""
        with open(log, "w") as file:
            return subprocess.Popen(
                [*self.inside(0), sys.executable, "-m", "terrafm", *map(str, arguments)],
                stdout=file, stderr=subprocess.STDOUT, env=clean_environment() | self.environment,
            )  # fmt: skip

    def processes(self, *hosts):
        """What runs on these hosts, or on all."""
        names = set()
        for name in [self.names[host] for host in hosts] or self.names:
            found = subprocess.run(
                ["ip", "netns", "pids", name], check=True, capture_output=True, text=True
            )
            names |= {int(pid) for pid in found.stdout.split()}
        return [psutil.Process(pid) for pid in names if psutil.pid_exists(pid)]

    def running(self, host, word):
        """Processes of a host that have this word in their command."""
        found = []
        for process in self.processes(host):
            with suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def remove(self):
        """Kills what runs there, and removes what was made."""
        listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
        there = {line.split()[0] for line in listed.stdout.splitlines()}
        if there.issuperset(self.names):
            self._kill()
        for name in there.intersection([*self.names, self.router]):
            _ip("netns", "del", name)

    def _kill(self):
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.2)


@contextmanager
def several_hosts(count, folder):
    """Makes them; at the end what runs there is killed."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    hosts = Hosts(f"terrafm{uuid.uuid4().hex[:6]}", count, folder)
    try:
        hosts.connect()
        yield hosts
    finally:
        hosts.remove()


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)

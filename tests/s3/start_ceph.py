"""A real S3 server for tests: a private Ceph object gateway that listens on loopback only.

    python tests/s3/start_ceph.py FOLDER PORT     starts what is not running, prints KEY=value lines
    python tests/s3/start_ceph.py FOLDER --stop   ends it

One monitor, one object store in a file (it survives kill -9), one gateway; everything lies in
FOLDER. Needs the Debian packages ceph-mon, ceph-osd and radosgw; --install installs them (root).
Any other S3 server will do as well: see CONTRIBUTING.md.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
ACCESS_KEY, SECRET_KEY, REGION = "terrafm-test-key", "terrafm-test-secret", "us-east-1"
_WAIT_SECONDS = 90

# Unauthenticated and unreplicated: nothing but this machine's tests ever reaches it.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}/0]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
keyring = /dev/null
admin_socket =
run_dir = {folder}
crash_dir = {folder}
pid_file =
log_file = {folder}/$name.log
mon_cluster_log_to_file = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
[mon]
mon_data = {folder}/mon
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_crush_smoke_test = false
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {store_bytes}
bluestore_block_create = true
bluestore_cache_autotune = false
bluestore_cache_size = 1073741824
osd_crush_initial_weight = 1
osd_class_load_list = *
osd_class_default_list = *
# The next gateway waits for the killed one's watches to lapse: 30 s by default.
osd_client_watch_timeout = 5
[client.rgw]
objecter_tick_interval = 1
rgw_data = {folder}/rgw
"""


class Ceph:
    """The server of one folder.

    Args:
        folder: where everything is kept.
        port: of the gateway.
    """

    def __init__(self, folder: str | Path, port: int) -> None:
        self.folder = Path(folder).resolve()
        self.port = port
        self._conf = self.folder / "ceph.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            # Ceph 16 does not take the checksum trailers that newer AWS libraries send.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def start(self) -> None:
        """Starts whatever is not running; makes the store the first time."""
        if not (self.folder / "ready").exists():
            self.stop()
            self._make()
        self._launch("mon", "ceph-mon", "-i", "a")
        self._launch("osd", "ceph-osd", "-i", "0")
        if not (self.folder / "ready").exists():
            self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test",
                      "--display-name=test", f"--access-key={ACCESS_KEY}",
                      f"--secret={SECRET_KEY}")  # fmt: skip
            (self.folder / "ready").touch()
        self.start_gateway()

    def start_gateway(self) -> None:
        """Brings the gateway (back) and waits until it answers."""
        frontend = f"beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1"
        self._launch("rgw", "radosgw", "-n", "client.rgw", f"--rgw-frontends={frontend}")
        end = time.monotonic() + _WAIT_SECONDS
        while not self._answers():
            if time.monotonic() > end or not self._alive("rgw"):
                raise RuntimeError(f"the gateway did not start: see {self.folder}/*.log")
            time.sleep(0.1)

    def kill_gateway(self) -> None:
        """Ends the gateway as a power cut would."""
        self._end("rgw", signal.SIGKILL)

    def stop(self) -> None:
        """Ends all daemons of this folder; the store stays."""
        for name in ("rgw", "osd", "mon"):
            self._end(name, signal.SIGTERM)

    def _make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        port = free_port()
        fsid, store = uuid.uuid4(), uuid.uuid4()
        self._conf.write_text(
            _CONFIGURATION.format(fsid=fsid, port=port, folder=self.folder, store_bytes=16 << 30)
        )
        monmap = self.folder / "monmap"
        address = f"[v2:127.0.0.1:{port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", "/dev/null")
        self._launch("mon", "ceph-mon", "-i", "a")
        self._run("ceph", "--connect-timeout", _WAIT_SECONDS, "osd", "new", store)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", store)

    def _run(self, program: str, *arguments: object) -> None:
        command = [program, "--conf", self._conf, *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()[-500:]}")

    def _launch(self, name: str, program: str, *arguments: str) -> None:
        if self._alive(name):
            return
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [program, "--conf", str(self._conf), "-f", *arguments],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def _pid(self, name: str) -> int | None:
        """Process id of a daemon of ours that runs: its command line names our configuration."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
        except (OSError, ValueError):
            return None
        command = Path(f"/proc/{pid}/cmdline")
        for _ in range(10):
            try:
                arguments = command.read_bytes().split(b"\0")
            except OSError:
                return None
            if len(arguments) > 1:
                return pid if str(self._conf).encode() in arguments else None
            # A process that was started just now has none yet.
            time.sleep(0.05)
        return None

    def _alive(self, name: str) -> bool:
        return self._pid(name) is not None

    def _end(self, name: str, sign: int) -> None:
        end = time.monotonic() + 10
        while (pid := self._pid(name)) is not None:
            os.kill(pid, sign if time.monotonic() < end else signal.SIGKILL)
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                return b"ListAllMyBuckets" in answer.read()
        except OSError:
            return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def installed() -> bool:
    """Whether Ceph's programs are here."""
    return all(shutil.which(program) for program in PROGRAMS)


def install() -> None:
    """Installs the Debian packages; their own services do not start."""
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["-y", "--no-install-recommends", "install", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)
    finally:
        if made:
            policy.unlink()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("port", type=int, nargs="?", default=0)
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--install", action="store_true", help="install missing packages (root)")
    arguments = parser.parse_args()
    server = Ceph(arguments.folder, arguments.port or free_port())
    if arguments.stop:
        server.stop()
        return
    if not installed():
        if not arguments.install:
            parser.error(f"needs the Debian packages {' '.join(PACKAGES)}: repeat with --install")
        install()
    server.start()
    for name, value in server.environment.items():
        print(f"{name}={value}")  # noqa: T201


if __name__ == "__main__":
    main()

"""The scripts that run on machines: what they do with a stand-in for Ray and for AWS."""

import json
import os
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from documents import CLUSTER
from ray.scripts.scripts import cli as ray_cli

NODE = "ab" * 28
HEAD = "10.0.0.7:6379"
NOTICE_SECONDS = 90


@pytest.fixture
def machine(tmp_path):
    """Environment of a machine on which a raylet runs; `ray` notes what it is called with."""
    process = tmp_path / "proc" / "4711"
    process.mkdir(parents=True)
    words = ["/x/ray/core/src/ray/raylet/raylet", f"--node_id={NODE}", f"--gcs-address={HEAD}"]
    (process / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    other = tmp_path / "proc" / "1"
    other.mkdir()
    (other / "cmdline").write_bytes(b"/sbin/init\0--node_id=wrong\0")
    programs = tmp_path / "bin"
    programs.mkdir()
    ray = programs / "ray"
    ray.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {tmp_path}/calls\n')
    ray.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TERRAFM_PROC": str(tmp_path / "proc"),
        "TERRAFM_NOTICE_PAUSE": "0.1",
    }


def script(name, *arguments, env, timeout=30):
    command = ["bash", str(CLUSTER / name), *arguments]
    return subprocess.run(
        command, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )


def calls(tmp_path):
    words = (tmp_path / "calls").read_text().split("\n")
    options = words[1:-1]
    return words[0], dict(zip(options[::2], options[1::2], strict=True))


def test_drain_node_tells_ray_of_its_own_node(machine, tmp_path):
    assert script("drain_node.sh", "90", "the pod is removed", env=machine).returncode == 0
    assert calls(tmp_path) == (
        "drain-node",
        {
            "--address": HEAD,
            "--node-id": NODE,
            "--reason": "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message": "the pod is removed",
            "--deadline-remaining-seconds": "90",
        },
    )


def test_ray_knows_the_options(machine, tmp_path):
    """`drain-node` is hidden from Ray's help, and may change without notice."""
    script("drain_node.sh", "90", "m", env=machine)
    verb, options = calls(tmp_path)
    known = {name for option in ray_cli.commands[verb].params for name in option.opts}
    assert set(options) <= known
    (reason,) = [o for o in ray_cli.commands[verb].params if "--reason" in o.opts]
    assert options["--reason"] in reason.type.choices


def test_drain_node_waits_until_ray_has_left_but_no_longer(machine, tmp_path):
    began = time.monotonic()
    script("drain_node.sh", "2", "m", "wait", env=machine)
    assert 1.5 < time.monotonic() - began < 60
    leaving = threading.Timer(1, (tmp_path / "proc" / "4711").rename, [tmp_path / "left"])
    leaving.start()
    began = time.monotonic()
    assert script("drain_node.sh", "60", "m", "wait", env=machine).returncode == 0
    assert time.monotonic() - began < 55


def test_drain_node_says_that_there_is_no_ray(machine, tmp_path):
    (tmp_path / "proc" / "4711" / "cmdline").unlink()
    done = script("drain_node.sh", "90", "m", env=machine)
    assert done.returncode == 1
    assert "no Ray node runs" in done.stderr
    assert not (tmp_path / "calls").exists()


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service: answers sessions only, and the notice when there is one."""

    def do_PUT(self):
        self._answer(200 if self.path == "/latest/api/token" else 404, "secret-session")

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.headers["X-aws-ec2-metadata-token"] != "secret-session":
            self._answer(401, "")
        elif self.server.notice is None or not self.path.endswith("/spot/instance-action"):
            self._answer(404, "no notice")
        else:
            self._answer(200, self.server.notice)

    def _answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def metadata(machine):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.notice, server.asked = None, []
    machine["TERRAFM_METADATA"] = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def watcher(machine, metadata):
    process = subprocess.Popen(["bash", str(CLUSTER / "spot_notice.sh")], env=machine)
    yield process
    process.kill()
    process.wait()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_a_spot_notice_becomes_a_drain(watcher, metadata, tmp_path):
    until(lambda: len(metadata.asked) >= 2)
    assert not (tmp_path / "calls").exists()
    going = datetime.now(UTC) + timedelta(seconds=NOTICE_SECONDS)
    metadata.notice = json.dumps({"action": "terminate", "time": f"{going:%Y-%m-%dT%H:%M:%SZ}"})
    until(
        lambda: (tmp_path / "calls").exists() and (tmp_path / "calls").read_text().count("\n") > 9
    )
    verb, options = calls(tmp_path)
    assert verb == "drain-node"
    assert options["--node-id"] == NODE
    left = int(options["--deadline-remaining-seconds"])
    assert NOTICE_SECONDS - 15 <= left <= NOTICE_SECONDS
    # One notice, one drain: systemd would start a script that ends, and drain again.
    time.sleep(0.5)
    assert watcher.poll() is None
    assert (tmp_path / "calls").read_text().count("drain-node") == 1


def test_a_drain_that_fails_is_tried_again(watcher, metadata, tmp_path):
    ray = tmp_path / "bin" / "ray"
    works = ray.read_text()
    ray.write_text(f"#!/bin/bash\ntouch {tmp_path}/failed\nexit 1\n")
    going = datetime.now(UTC) + timedelta(seconds=NOTICE_SECONDS)
    metadata.notice = json.dumps({"action": "terminate", "time": f"{going:%Y-%m-%dT%H:%M:%SZ}"})
    until((tmp_path / "failed").exists)
    ray.write_text(works)
    until((tmp_path / "calls").exists)


def test_a_machine_that_is_no_spot_instance_is_left_alone(machine, metadata, tmp_path):
    metadata.notice = "<html>not found</html>"
    with pytest.raises(subprocess.TimeoutExpired):
        script("spot_notice.sh", env=machine, timeout=2)
    assert not (tmp_path / "calls").exists()


def test_the_environment_of_a_node_keeps_what_is_set(tmp_path):
    source = f". {CLUSTER / 'node_environment.sh'}; env"
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_AUTH_TOKEN_PATH": "/secret/t"}
    printed = subprocess.run(
        ["bash", "-euc", source], env=own, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert "RAY_AUTH_MODE=token" in printed
    assert "RAY_AUTH_TOKEN_PATH=/secret/t" in printed
    assert f"PATH={tmp_path}/venv/bin:{os.environ['PATH']}" in printed


@pytest.fixture
def slurm(tmp_path):
    """Environment of a Slurm job; `srun` notes Ray's token settings and what it is to start."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, line in {
        "scontrol": "echo first",
        "srun": 'printf "%s\\n" "$RAY_AUTH_MODE" "$RAY_AUTH_TOKEN_PATH" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    return {
        "HOME": str(tmp_path), "TERRAFM_VENV": str(programs.parent), "PATH": os.environ["PATH"],
        "SLURM_SUBMIT_DIR": str(CLUSTER.parent), "SLURM_JOB_NODELIST": "first,second",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "96",
        "TERRAFM_DATA": "/data", "TERRAFM_OUTPUT": "/run",
    }  # fmt: skip


def test_a_slurm_job_starts_ray_with_a_token_of_its_user_alone(slurm, tmp_path):
    refused = script("slurm.sbatch", env=slurm)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "make a token first" in refused.stderr
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    for mode in (0o640, 0o604):
        token.chmod(mode)
        refused = script("slurm.sbatch", env=slurm)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "others can read" in refused.stderr
    token.chmod(0o600)
    started = script("slurm.sbatch", env=slurm)
    assert started.returncode == 0, started.stderr
    assert started.stdout.splitlines()[:2] == ["token", str(token)]
    assert "--dashboard-host=127.0.0.1" in started.stdout
    assert "secret" not in started.stdout

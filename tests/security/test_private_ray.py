"""The Ray that a plain command starts is its user's alone."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from terrafm.clusters import state
from terrafm.clusters.sockets import listening

# What another account of the machine tries: prints a JSON object.
STRANGER = """
import json, os, sys, urllib.error, urllib.request
import grpc, http.client, encodings.idna

# Imported late by the library.
grpc.insecure_channel("127.0.0.1:1").close()

# Another account may not be able to run this interpreter: it becomes one once all is imported.
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
request = json.loads(sys.argv[1])

def refused(act):
    try:
        act()
    except PermissionError:
        return True
    return False

def over_grpc(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    methods = ["NodeInfoGcsService/GetAllNodeInfo", "NodeManagerService/GetNodeStats",
               "CoreWorkerService/GetCoreWorkerStats"]
    codes = []
    for method in methods:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)
    return codes

def over_http(port):
    answers = []
    for path in ("/get_or_create_runtime_env", "/api/version", "/api/job_agent/jobs/", "/metrics"):
        for data in (None, b"{}"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=5) as a:
                    answers.append(a.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)
            except (OSError, http.client.HTTPException):
                answers.append(0)
    return answers

print(json.dumps({
    "folder": refused(lambda: os.listdir(request["folder"])),
    "token": refused(lambda: open(request["folder"] + "/token").read()),
    "grpc": {port: over_grpc(port) for port in request["ports"]},
    "http": {port: over_http(port) for port in request["ports"]},
}))
"""


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory):
    """A fresh process that has started Ray as every command does: what it says of itself."""
    home = tmp_path_factory.mktemp("home")
    code = (
        "import json, os, sys; from terrafm.ray.runtime import ensure_ray; ensure_ray(1);"
        "import ray; ray.get(ray.remote(lambda: 1).remote());"
        "folder = os.path.dirname(os.environ['RAY_AUTH_TOKEN_PATH']);"
        "address = ray.get_runtime_context().gcs_address;"
        "print(json.dumps({'folder': folder, 'address': address}), flush=True); sys.stdin.read()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment | {"HOME": str(home)},
    )  # fmt: skip
    said = json.loads(process.stdout.readline())
    family = psutil.Process(process.pid)
    yield said | {"home": home, "family": [family, *family.children(recursive=True)]}
    process.communicate("", timeout=60)
    assert process.returncode == 0
    assert not Path(said["folder"]).exists()


def test_it_listens_on_loopback_only_and_leaves_no_token_to_others(own_ray):

    sockets = listening(own_ray["family"])
    assert {"GCS", "raylet"} <= {socket.kind for socket in sockets}
    assert [str(socket) for socket in sockets if socket.is_open] == []
    folder = Path(own_ray["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert own_ray["address"].startswith("127.0.0.1:")
    # Where Ray would put one that all may read.
    assert not (own_ray["home"] / ".ray").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another account")
def test_another_account_of_the_machine_is_let_in_nowhere(own_ray):

    # Ray's autoscaler opens its port last.
    time.sleep(5)
    ports = sorted({socket.port for socket in listening(own_ray["family"])})
    request = json.dumps({"folder": own_ray["folder"], "ports": ports})
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, request], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["folder"]
    assert seen["token"]
    gcs = own_ray["address"].rpartition(":")[2]
    assert seen["grpc"][gcs][0] == "UNAUTHENTICATED"
    for port in map(str, ports):
        assert "OK" not in seen["grpc"][port], port
        # 404: there is no such page; 405: no such method; 0: it does not speak HTTP.
        assert set(seen["http"][port]) <= {0, 401, 403, 404, 405}, (port, seen["http"][port])


@pytest.mark.parametrize("letters", [4, 12, 22, 61, 200])
def test_paths_of_its_sockets_are_short_wherever_temporary_files_lie(monkeypatch, letters):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (letters - 1))
    for prefix in (state.SCRATCH_PREFIX, "terrafm-4194304-"):
        parent = state.scratch_parent(prefix)
        assert parent in (tempfile.gettempdir(), "/tmp")
        session = "ray/session_2026-11-29_16-45-57_123456_4194304/sockets/plasma_store"
        assert len(f"{parent}/{prefix}{'x' * 8}/{session}".encode()) <= 107

"""`terrafm doctor` without a cluster: each check says ok, warning or fault, and what to do."""

import http.server
import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import tomllib
from email.utils import formatdate
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from terrafm.clusters import machine
from terrafm.clusters.accelerator import judge
from terrafm.clusters.findings import FAULT, OK, WARNING, Finding
from terrafm.clusters.machine import (
    environment,
    judge_disk,
    judge_files,
    judge_memory,
    judge_packages,
    judge_processors,
    judge_python,
    judge_shared_memory,
)
from terrafm.clusters.probe import STEPS
from terrafm.clusters.store import examine_store, judge_skew
from terrafm.clusters.tested import TESTED, TESTED_PYTHON
from terrafm.storage import list_names

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def test_what_was_tested_is_what_the_images_hold():
    lock = (ROOT / "cluster" / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ \\;]+)", lock, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [Requirement(line).name.lower() for line in project["dependencies"]]
    assert {name: pins[name] for name in names} == TESTED
    assert f'python-version: "{TESTED_PYTHON}"' in (ROOT / ".github/workflows/ci.yml").read_text()


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        (judge_python("3.11.7", ">=3.11"), OK, "as tested"),
        (judge_python("3.12.1", ">=3.11"), WARNING, "prefer"),
        (judge_python("3.10.2", ">=3.11"), FAULT, "is not >=3.11"),
        (judge_processors(8, None, 1.0), OK, "8 CPUs"),
        (judge_processors(64, 2.0, 1.0), WARNING, "OMP_NUM_THREADS=2"),
        (judge_processors(2, None, 9.0), WARNING, "load 9.0"),
        (judge_memory(20 * GIB, 32 * GIB), OK, "this machine"),
        (judge_memory(3 * GIB, 4 * GIB, limited=True), WARNING, "the container's limit"),
        (judge_memory(1 * GIB, 4 * GIB), FAULT, "take more memory"),
        (judge_shared_memory(64 << 20), WARNING, "--shm-size"),
        (judge_shared_memory(8 * GIB), OK, "/dev/shm"),
        (judge_files(1 << 20, 1 << 20), OK, "as many"),
        (judge_files(20_000, 20_000), OK, "20,000"),
        (judge_files(1024, resource.RLIM_INFINITY), WARNING, "ulimit -n 65536"),
        (judge_files(256, 4096), FAULT, "the hard limit is 4,096"),
        (judge_skew(0.4, "the store"), OK, "agree"),
        (judge_skew(-90, "the store"), WARNING, "89 s behind"),
        (judge_skew(3600, "the store"), FAULT, "ahead of"),
    ],
    ids=lambda value: value.text[:30] if isinstance(value, Finding) else None,
)
def test_what_is_measured_becomes_a_level_and_a_remedy(finding, level, said):
    assert finding.level == level
    assert said in finding.text
    assert "\n" not in finding.text


def test_a_library_that_is_missing_wrong_or_untested_is_named():
    needed = [Requirement(line) for line in ("ray>=2.60,<2.61", "torch>=2.11", "timm>=1", "rich")]
    found = {"ray": "2.59.0", "torch": "2.11.0", "rich": TESTED["rich"]}
    texts = {finding.text: finding.level for finding in judge_packages(needed, found)}
    (missing,) = [text for text in texts if "timm is missing" in text]
    (wrong,) = [text for text in texts if text.startswith("ray 2.59.0")]
    assert texts[missing] == texts[wrong] == FAULT
    assert "pip install 'ray<2.61,>=2.60'" in wrong
    (other,) = [text for text in texts if f"torch 2.11.0 ({TESTED['torch']})" in text]
    assert texts[other] == WARNING
    assert texts["1 libraries have the versions that were tested"] == OK


def test_the_libraries_of_this_environment_are_found():
    findings = list(machine.software())
    assert not [finding for finding in findings if finding.level == FAULT], findings
    assert machine.installed_versions()["scikit-learn"]


def test_a_disk_is_written_to(tmp_path):
    assert judge_disk("temporary files", str(tmp_path)).level in (OK, WARNING)
    refused = judge_disk("temporary files", "/proc")
    assert refused.level == FAULT
    assert "TMPDIR" in refused.text


def test_a_full_disk_is_told_before_ray_stops_on_it(tmp_path, monkeypatch):
    def usage(free, total):
        found = type("Usage", (), {"free": free * GIB, "total": total * GIB})
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: found)
        return judge_disk("temporary files", str(tmp_path))

    assert usage(1, 100).level == FAULT
    assert "Ray stops at 95 %" in usage(30, 1000).text
    assert usage(10, 100).level == WARNING
    assert usage(500, 1000).level == OK


@pytest.mark.parametrize(
    ("variables", "level", "said"),
    [
        ({"RAY_ADDRESS": "10.0.0.5:6379"}, WARNING, "unset RAY_ADDRESS"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such"}, FAULT, "no such file"),
        ({"RAY_TMPDIR": "/x", "RAY_DEDUP_LOGS": "0"}, WARNING, "unset RAY_DEDUP_LOGS RAY_TMPDIR"),
        ({"MASTER_ADDR": "host", "RANK": "0"}, WARNING, "unset MASTER_ADDR RANK"),
        ({"CUDA_VISIBLE_DEVICES": ""}, WARNING, "no GPU is used"),
        ({"https_proxy": "http://me:secret@proxy"}, WARNING, "export NO_PROXY=127.0.0.1"),
        ({"GLOO_SOCKET_IFNAME": "eth7"}, FAULT, "no interface eth7, but eth0, lo"),
        ({"NCCL_SOCKET_IFNAME": "=ib0,eth"}, FAULT, "no interface =ib0,"),
    ],
)
def test_what_the_environment_has_left_over_is_named(variables, level, said):
    (finding,) = environment(variables, {"lo", "eth0"})
    assert finding.level == level
    assert said in finding.text
    assert "secret" not in finding.text


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HTTP_PROXY": "http://proxy", "NO_PROXY": "localhost, 127.0.0.1"},
        {"NCCL_SOCKET_IFNAME": "^docker0,lo", "GLOO_SOCKET_IFNAME": "eth0"},
        {"HTTPS_PROXY": "", "RAY_AUTH_MODE": "token", "PATH": "/bin"},
    ],
)
def test_an_environment_without_leftovers_is_sound(variables):
    (finding,) = environment(variables, {"lo", "eth0"})
    assert finding.level == OK


def test_who_holds_a_port_of_ray_is_named(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(machine, "RAY_PORTS", {port: "GCS"})
        (taken,) = machine.ports()
    assert taken.level == WARNING
    assert f"port {port}, which `ray start --head` takes for the GCS, is held by" in taken.text
    (free,) = machine.ports()
    assert free.level == OK


WELL = {
    "torch": {"version": "2.15.0", "cuda": None, "devices": [], "seconds": 3.0},
    "bf16": {"right": True, "native": True, "gpu": False, "seconds": 0.1},
    "gloo": {"right": True, "seconds": 0.1},
    "nccl": {"seconds": 0.0},
    "libraries": {"seconds": 5.0},
}
GPU = {"name": "NVIDIA H200", "bytes": 150e9, "free": 149e9, "capability": [9, 0]}


def judged(smi=None, end="", **steps):
    found = {name: value for name, value in (WELL | steps).items() if value is not None}
    return {finding.text: finding.level for finding in judge(found, end, smi)}


def test_a_sound_machine_without_a_gpu_has_no_fault():
    found = judged()
    assert set(found.values()) == {OK}
    assert any(text.startswith("no GPU") for text in found)


def test_gpus_are_named_with_driver_and_nccl():
    torch = WELL["torch"] | {"cuda": "13.2", "devices": [GPU, GPU | {"free": 10e9}]}
    found = judged(
        ("610.4", ["NVIDIA H200"] * 2), torch=torch, nccl={"right": True, "version": "2.30.7"}
    )
    assert found["GPU 0: NVIDIA H200, 149.0 GB of 150.0 GB free (CUDA 13.2, driver 610.4)"] == OK
    (second,) = [text for text in found if text.startswith("GPU 1")]
    assert found[second] == WARNING
    assert found["NCCL 2.30.7 sums up over a process group"] == OK


@pytest.mark.parametrize(
    ("steps", "smi", "level", "said"),
    [
        ({"torch": WELL["torch"]}, ("610.4", ["NVIDIA H200"]), FAULT, "is built without CUDA"),
        ({}, ("", []), FAULT, "nvidia-smi is there and does not answer"),
        ({"bf16": WELL["bf16"] | {"right": False}}, None, FAULT, "train.precision=float32"),
        ({"bf16": WELL["bf16"] | {"native": False, "gpu": True}}, None, WARNING, "is emulated"),
        ({"gloo": {"error": "RuntimeError: no address"}}, None, FAULT, "getent hosts"),
        ({"gloo": {"right": False}}, None, FAULT, "sums up wrongly"),
        ({"nccl": {"error": "DistBackendError: x"}}, None, FAULT, "NCCL_DEBUG=WARN"),
        ({"libraries": {"error": "ImportError: x"}}, None, FAULT, "--force-reinstall terrafm"),
    ],
)
def test_what_is_wrong_with_pytorch_and_gpus_has_a_remedy(steps, smi, level, said):
    found = judged(smi, **steps)
    (text,) = [text for text in found if said in text]
    assert found[text] == level


def test_a_library_that_ends_its_process_is_a_fault_and_not_the_end():
    found = judged(end="SIGILL: illegal instruction", gloo=None, nccl=None, libraries=None)
    *_, last = found
    assert last == "gloo: the process that tried it ended (SIGILL: illegal instruction)"
    assert found[last] == FAULT


def test_a_pytorch_that_cannot_be_loaded_is_told_in_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    done = subprocess.run(
        [sys.executable, "-m", "terrafm.clusters.probe"], capture_output=True, text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=120, check=True,
    )  # fmt: skip
    steps = {line["step"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(steps) == set(STEPS)
    (finding,) = judge(steps, "", None)
    assert finding.text.startswith("PyTorch: ImportError: libcudart.so.13: cannot open; reinstall")


def test_a_folder_is_written_read_listed_and_cleared(tmp_path):
    (finding,) = examine_store(str(tmp_path))
    assert (finding.level, list(tmp_path.iterdir())) == (OK, [])
    (missing,) = examine_store(str(tmp_path / "none"))
    assert missing.level == FAULT
    assert not (tmp_path / "none").exists()


def test_a_bucket_is_too_and_its_clock_is_asked(s3_bucket):
    clock, finding = examine_store(f"{s3_bucket}/prefix")
    assert (clock.level, finding.level) == (OK, OK)
    assert "clocks" in clock.text
    assert list_names(f"{s3_bucket}/prefix") == []
    *_, refused = examine_store("s3://no-such-bucket-here/prefix")
    assert refused.level == FAULT
    assert "cannot be written" in refused.text
    assert "s3:PutObject" in refused.text


def test_an_operation_that_is_refused_is_named_with_the_right_it_needs(s3_bucket, monkeypatch):
    def refuse(uri):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("terrafm.clusters.store.list_names", refuse)
    *_, refused = examine_store(s3_bucket)
    assert refused.level == FAULT
    assert "cannot be listed: Access Denied; the credentials need s3:ListBucket" in refused.text
    assert list_names(s3_bucket) == []


@pytest.fixture
def store_of_another_time(monkeypatch):
    """An S3 endpoint that only tells the time, an hour ago."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response_only(403)
            self.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    yield url
    server.shutdown()
    server.server_close()


def fresh_store_check(uri):
    """In a process of its own: clients are kept with the endpoint that they began with."""
    script = (
        "import json, sys; from terrafm.clusters.store import examine_store; "
        "print(json.dumps([[f.level, f.text] for f in examine_store(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, uri], capture_output=True, text=True, timeout=200, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_clock_that_is_off_is_told_and_nothing_else_is_tried(store_of_another_time):
    ((level, text),) = fresh_store_check("s3://bucket/prefix")
    assert level == FAULT
    assert "3599 s ahead of" in text or "3600 s ahead of" in text


def test_a_store_that_nobody_answers_for_is_told_at_once(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    ((level, text),) = fresh_store_check("s3://bucket/prefix")
    assert level == FAULT
    assert f"nobody answers at http://127.0.0.1:{port}" in text


def findings_of(monkeypatch, *levels):
    told = [Finding(level, f"check {number}") for number, level in enumerate(levels)]
    monkeypatch.setattr("terrafm.clusters.machine.examine_machine", lambda store: iter(told))


def test_the_verb_ends_with_1_on_a_fault_only(run, monkeypatch):
    findings_of(monkeypatch, OK, WARNING)
    assert run("doctor", "--quiet")[:2] == (0, "ok      check 0\nwarning check 1\n")
    findings_of(monkeypatch, OK, FAULT)
    code, _, errors = run("doctor", "--quiet")
    assert (code, errors) == (1, "terrafm: error: 1 of 2 checks failed\n")
    code, out, _ = run("doctor", "--quiet", "--json")
    assert code == 1
    assert json.loads(out)["findings"][1] == {"level": FAULT, "text": "check 1"}


def test_options_of_the_other_doctor_are_refused(refused):
    assert "add --cluster" in refused("doctor", "--address", "http://127.0.0.1:8265")
    assert "leave out --cluster" in refused("doctor", "--cluster", "--store", "s3://bucket")


@pytest.mark.slow
def test_the_first_line_comes_at_once_and_the_last_when_all_is_loaded(tmp_path):
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "terrafm", "doctor", "--store", str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        first = process.stdout.readline()
        early = time.monotonic() - began
        rest = process.stdout.read()
    whole = time.monotonic() - began
    assert first.startswith("ok      Python ")
    # On an idle machine a second; PyTorch alone takes several times as long.
    assert early < max(2.0, whole / 2)
    assert process.returncode == 0, first + rest
    assert "DeepSpeed and Ray load" in rest.splitlines()[-1]

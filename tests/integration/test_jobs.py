"""Verbs as jobs on a real cluster of this machine: a head and two raylets, with a token."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from clusters import wait_until
from commands import clean_environment, terrafm
from test_elastic import assert_planned_samples, command, step_of

from terrafm.clusters import state
from terrafm.clusters.sockets import listening
from terrafm.train.driver.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = [
    "train.steps=6", "train.checkpoint_every=3", "train.global_batch=6", "train.workers=2",
    "train.precision=float32", "head.num_prototypes=32", "data.local_crops=2",
    "train.standby=false",
]  # fmt: skip


def sets(*settings):
    return [part for setting in settings for part in ("--set", setting)]


class Here:
    """The cluster, and the environment of somebody who may use it."""

    def __init__(self, folder):
        (folder / "home").mkdir()
        self.folder = folder
        # Nobody's token by accident.
        self.stranger = {"HOME": str(folder / "home"), "TERRAFM_CLUSTER_DIR": str(folder / "c")}
        terrafm("cluster", "up", "--local", "--workers", "2", environment=self.stranger)
        described = terrafm("cluster", "status", "--json", environment=self.stranger)
        self.status = json.loads(described.stdout)
        self.url = self.status["dashboard_url"]
        self.user = {**self.stranger, "RAY_AUTH_TOKEN_PATH": self.status["token_path"]}
        self.token = Path(self.status["token_path"]).read_text()
        record = json.loads((folder / "c" / "cluster.json").read_text())
        self.record = state.LocalCluster(**record)

    def run(self, *arguments, environment=None, check=0, folder=None):
        return terrafm(
            *arguments, "--address", self.url, environment=environment or self.user, check=check,
            folder=folder, timeout=1200,
        )  # fmt: skip

    def jobs(self):
        return json.loads(self.run("jobs", "list", "--json").stdout)["jobs"]

    def work(self):
        """Processes of jobs: what has come to the cluster since its start, and works."""
        recorded = {int(pid) for pid, _ in self.record.processes}
        words = ("ray_jobs", "RayTrainWorker", "TrainController", "MapWorker", "JobSupervisor")
        return [
            process
            for process in self.record.family()
            if process.pid not in recorded and any(w in _line(process) for w in words)
        ]


def _line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Here(tmp_path_factory.mktemp("jobs"))
    yield made
    terrafm("cluster", "down", environment=made.stranger)
    assert made.record.family() == []
    assert not Path(made.status["token_path"]).exists()
    assert not Path(made.record.scratch).exists()


def one_line(done):
    lines = [line for line in done.stderr.splitlines() if line]
    # What is said at once, before the cluster answers.
    if lines[0].startswith("terrafm: asking the cluster at "):
        lines = lines[1:]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("terrafm: error: ")
    return lines[0]


def test_status_names_head_and_workers(here):
    nodes = here.status["nodes"]
    assert [(n["name"], n["head"], n["alive"], n["cpus"]) for n in nodes] == [
        ("head", True, True, 0), ("worker-1", False, True, 2), ("worker-2", False, True, 2),
    ]  # fmt: skip
    assert {n["address"] for n in nodes} == {"127.0.0.1"}
    # Not in the folder that all users share: it may be another's, or not be there.
    address = Path(here.record.scratch, "ray", "ray_current_cluster")
    assert address.read_text() == here.status["address"]


def test_a_second_cluster_is_one_line(here):
    done = terrafm("cluster", "up", "--local", environment=here.stranger, check=2)
    assert f"runs already, at {here.url}" in one_line(done)


def test_nothing_listens_beyond_loopback_and_nothing_answers_without_a_token(here):
    sockets = listening(here.record.family())
    assert {"GCS", "raylet", "dashboard", "dashboard's agent"} <= {s.kind for s in sockets}
    assert [str(s) for s in sockets if s.is_open] == []
    # As somebody else in the network would try.
    own = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    for host in own:
        for found in sockets:
            with socket.socket() as knock:
                knock.settimeout(2)
                assert knock.connect_ex((host, found.port)) != 0, f"{found} answers at {host}"
    harmless = {"/", "/api/authentication_mode", "/api/local_raylet_healthz", "/api/gcs_healthz"}
    paths = [
        "/api/version", "/api/jobs/", "/api/job_agent/jobs/", "/nodes?view=summary", "/metrics",
        "/api/v0/actors", "/get_runtime_envs_info", "/api/serve/applications/", "/logs",
    ]  # fmt: skip
    answers = {}
    for found in sockets:
        for path in (*paths, *harmless):
            try:
                answer = requests.get(f"http://127.0.0.1:{found.port}{path}", timeout=5)
            except requests.RequestException:
                continue  # It speaks gRPC, whose refusal is tested by joining.
            answers[str(found), path] = answer.status_code
    assert len({name for name, _ in answers}) >= 7  # Dashboard; agents of three nodes.
    let_in = {k: v for k, v in answers.items() if v != 401 and k[1] not in harmless}
    assert let_in == {}


def test_the_doctor_finds_it_sound_and_an_open_token_unsound(here):
    done = terrafm("doctor", "--cluster", environment=here.stranger)
    assert "FAULT" not in done.stdout
    token = Path(here.status["token_path"])
    token.chmod(0o644)
    try:
        done = terrafm("doctor", "--cluster", environment=here.stranger, check=1)
    finally:
        token.chmod(0o600)
    assert [line for line in done.stdout.splitlines() if line.startswith("FAULT")] == [
        f"FAULT   {token} is open to others (mode 0644): chmod 600 {token}, and make a new token"
    ]
    assert "1 of" in one_line(done)
    done = terrafm("doctor", "--cluster", "--address", here.url, environment=here.stranger, check=1)
    assert "asks for a token" in done.stdout


@pytest.mark.parametrize("verb", ["submit", "jobs", "pretrain"])
def test_no_token_and_a_wrong_one_are_one_line_each(here, small_dataset, tmp_path, verb):
    run = command(small_dataset, tmp_path / "run")

    def attempt(environment):
        environment = here.stranger | environment
        if verb == "pretrain":
            joining = environment | {"RAY_ADDRESS": here.status["address"]}
            return one_line(terrafm(*run, environment=joining, check=2))
        words = ["submit", *run] if verb == "submit" else ["jobs", "list"]
        return one_line(here.run(*words, environment=environment, check=2))

    assert "asks for a token" in attempt({})
    wrong = attempt({"RAY_AUTH_TOKEN": "0" * 64})
    assert "refuses the token of RAY_AUTH_TOKEN" in wrong
    assert here.token not in wrong
    assert not (tmp_path / "run").exists()


def test_other_versions_are_one_line(here, monkeypatch, run, small_dataset, tmp_path):
    from terrafm.clusters import versions
    from terrafm.jobs import submit

    for name, value in here.user.items():
        monkeypatch.setenv(name, value)
    own = versions.own_versions()
    monkeypatch.setattr(submit, "own_versions", lambda: own | {"ray": "2.59.0", "python": "3.10"})
    arguments = command(small_dataset, tmp_path / "run")
    code, _, errors = run("submit", *arguments, "--address", here.url)
    assert code == 2, errors
    # What is said at once comes before it.
    _, line = errors.strip().splitlines()
    assert f"ray {own['ray']} instead of 2.59.0" in line
    assert f"python {own['python']} instead of 3.10" in line


def test_the_whole_road_from_another_folder(here, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: demo\n")
    source = ["--source", "synthetic", "--input", "synthetic:cells=24,seed=0,px=132"]
    done = here.run("submit", "ingest", *source, "--output", "tiles", "--tile-size", "66",
                    "--set", "ingest.workers=2", folder=tmp_path)  # fmt: skip
    assert re.search(r"sending \d+ files, [\d.]+ kB, 1 of them from ", done.stderr)
    assert (tmp_path / "tiles" / "manifest.json").exists() or any((tmp_path / "tiles").iterdir())
    done = here.run("submit", "pretrain", "--config", "mine.yaml", "--data", "tiles",
                    "--output", "run", *sets(*SMALL), folder=tmp_path)  # fmt: skip
    assert "6/6 steps" in done.stdout
    assert "6 steps, loss" in done.stdout
    job = here.jobs()[0]
    assert (job["status"], job["verb"], job["output"]) == (
        "SUCCEEDED", "pretrain", str(tmp_path / "run"),
    )  # fmt: skip
    head = next(n["node_id"] for n in here.status["nodes"] if n["head"])
    assert job["driver_node"] == head
    assert "6 steps, loss" in here.run("jobs", "logs", job["id"]).stdout

    terrafm("export", "--checkpoint", tmp_path / "run" / "checkpoints" / "step_00000006",
            "--output", tmp_path / "weights", "--format", "safetensors")  # fmt: skip
    done = here.run("submit", "evaluate", "knn", "--weights", "weights", "--data", "tiles",
                    "--json", folder=tmp_path)  # fmt: skip
    assert json.loads(next(li for li in done.stdout.splitlines() if li.startswith("{")))
    sweep = ["submit", "sweep", "--config", "mine.yaml", "--data", "tiles", "--output", "sweep",
             *sets(*SMALL, "train.workers=1", "tune.trials=1", "tune.max_concurrent=1",
                   "tune.space={loss.alpha: {uniform: [0, 1]}}")]  # fmt: skip
    here.run(*sweep, folder=tmp_path)
    assert (tmp_path / "sweep" / "best.yaml").exists()
    again = here.run(*sweep, folder=tmp_path)
    assert "holds a sweep" not in again.stdout
    failed = here.run("submit", "pretrain", "--config", "demo", "--data", "nothing", "--output",
                      "other", folder=tmp_path, check=2)  # fmt: skip
    assert f"terrafm: error: there is no dataset at {tmp_path}/nothing" in failed.stdout or (
        f"{tmp_path}/nothing" in failed.stdout
    )


@pytest.fixture
def long_run(here, small_dataset, tmp_path):
    """A run that is under way, watched on a terminal."""
    words = command(small_dataset, tmp_path / "run", "train.workers=2", "train.standby=false")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "terrafm", "submit", *words, "--address", here.url],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=clean_environment() | here.user,
        # Tests that run in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    yield process, ours, words, tmp_path / "run"
    process.kill()
    process.wait()
    os.close(ours)
    for job in here.jobs():
        here.run("jobs", "stop", job["id"])


def read_until(terminal, text, seconds=60):
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # The other side has ended.
            break
    assert text in seen
    return seen


def test_stopped_within_20_seconds_and_goes_on_when_given_again(here, long_run, small_dataset):
    process, terminal, words, output = long_run
    submitted = read_until(terminal, "Running entrypoint")
    job = re.search(r"submitted (\S+)", submitted)[1]
    busy = one_line(here.run("submit", *words, check=2))
    assert "is at work on" in busy
    assert job in busy
    wait_until(lambda: step_of(output) >= 15, "step 15", process)
    began = time.monotonic()
    here.run("jobs", "stop", job)
    wait_until(lambda: here.work() == [], "the end of its processes", seconds=20)
    took = time.monotonic() - began
    assert took < 20
    assert process.wait(timeout=30) == 1
    assert f"{job} was stopped" in read_until(terminal, "was stopped")
    stopped = here.run("jobs", "status", job, "--json")
    assert json.loads(stopped.stdout)["status"] == "STOPPED"
    assert "had ended before" in here.run("jobs", "stop", job).stderr

    done = here.run("submit", *words)
    assert here.jobs()[0]["id"] == f"{job}-2"
    resumed = int(re.search(r"resumed at (\d+)", done.stdout)[1])
    assert resumed >= 14
    assert_planned_samples(output, small_dataset)
    assert [e["step"] for e in read_events(str(output)) if e["event"] == "started"] == [0, resumed]
    print(f"stopped within {took:.1f} s, went on from step {resumed}")  # noqa: T201


@pytest.mark.parametrize("answer", ["w", "s"])
def test_ctrl_c_asks(here, long_run, answer):
    process, terminal, _, output = long_run
    wait_until(lambda: step_of(output) >= 1, "a step", process)
    process.send_signal(signal.SIGINT)
    read_until(terminal, "stop the job, or only stop watching?")
    os.write(terminal, f"{answer}\n".encode())
    assert process.wait(timeout=40) == (0 if answer == "w" else 1)
    status = here.jobs()[0]["status"]
    assert status == ("RUNNING" if answer == "w" else "STOPPED")
    read_until(terminal, "goes on: terrafm jobs logs" if answer == "w" else "was stopped")


def test_a_job_that_is_not_there(here):
    for verb in ("status", "logs", "stop"):
        assert "knows no job nothing" in one_line(here.run("jobs", verb, "nothing", check=2))


def test_the_token_is_nowhere_but_in_its_file(here, small_dataset, tmp_path):
    here.run("submit", *command(small_dataset, tmp_path / "run", *SMALL))
    lines = [_line(process) for process in here.record.family()]
    assert not any(here.token in line for line in lines)
    looked = 0
    for root in (Path(here.record.scratch), here.folder / "c", tmp_path):
        for path in root.rglob("*"):
            if path.is_file() and path != Path(here.status["token_path"]):
                looked += 1
                assert here.token.encode() not in path.read_bytes(), path
    assert looked > 50

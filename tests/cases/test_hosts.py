"""Cases of hosts: proxies, two writers, strange names, hosts without a home, abrupt ends."""

import asyncio
import http.server
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import pytest
from typer.main import get_command

from terrafm.cli import app
from terrafm.config import load_config
from terrafm.errors import TerraFMError
from terrafm.jobs.arguments import read_command
from terrafm.jobs.submit import _run_key
from terrafm.shell import command_line
from terrafm.storage import absolute, canonical, list_names, write_bytes
from terrafm.storage.lease import lease

SECRET = "secret-token-0123456789abcdef"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
JOB = {
    "type": "SUBMISSION", "job_id": "01000000", "submission_id": "pretrain-run-1",
    "status": "SUCCEEDED", "entrypoint": "python -m ray_jobs pretrain", "message": "done",
    "driver_exit_code": 0, "metadata": {"terrafm_verb": "pretrain"}, "driver_node_id": "1",
}  # fmt: skip

HEAD = {
    "isHeadNode": True, "nodeId": "1", "nodeName": "head", "state": "ALIVE",
    "nodeManagerAddress": "127.0.0.1",
}  # fmt: skip


@pytest.fixture
def training(cases):
    """A folder of ../shared/cases/training, or a skip: the tests hold what its README says."""
    return lambda number: cases(f"training/{number}")


# A proxy in the environment (01)


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that everything in the environment names; what it was sent, one text a request."""
    sent = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def answer(self):
            sent.append(f"{self.requestline}\n{self.headers}")
            self.send_error(502)

        def __getattr__(self, name):
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in PROXIES:
        for spelled in (name, name.lower()):
            monkeypatch.setenv(spelled, f"http://127.0.0.1:{server.server_port}")
    for name in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield sent
    server.shutdown()


@pytest.fixture
def dashboard(monkeypatch):
    """URL of a stand-in for Ray's dashboard, and the Authorization of each request to it."""
    from aiohttp import web

    seen = []

    async def answer(request):
        seen.append((request.method, request.path, request.headers.get("Authorization")))
        if request.path.endswith("/logs/tail"):
            socket_ = web.WebSocketResponse()
            await socket_.prepare(request)
            await socket_.send_str("followed\n")
            if "hangs" in request.path:
                await asyncio.sleep(600)
            await socket_.close()
            return socket_
        if request.method == "GET" and "/packages/" in request.path:
            return web.Response(status=404)
        if request.method == "POST" and request.path == "/api/jobs/":
            return web.json_response({"job_id": "new", "submission_id": "new"})
        return web.json_response(
            {
                "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"},
                "/api/jobs/": [JOB, JOB | {"submission_id": "hangs", "status": "RUNNING"}],
                f"/api/jobs/{JOB['submission_id']}/logs": {"logs": "printed\n"},
                "/api/authentication_mode": {"authentication_mode": "token"},
                "/nodes": {"data": {"summary": [{"raylet": HEAD, "cmdline": []}]}},
            }.get(request.path, {})
        )

    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

    async def serve():
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(server, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.append(runner.addresses[0][1])
        ready.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    threading.Thread(target=work, daemon=True).start()
    assert ready.wait(30)
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    yield f"http://127.0.0.1:{port[0]}", seen
    loop.call_soon_threadsafe(loop.stop)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["jobs", "list"], "pretrain-run-1"),
        (["jobs", "status", "pretrain-run-1"], "SUCCEEDED"),
        (["jobs", "logs", "pretrain-run-1"], "printed"),
        (["jobs", "logs", "pretrain-run-1", "--follow"], "followed"),
        (["jobs", "stop", "pretrain-run-1"], ""),
    ],
)
def test_a_proxy_is_shown_no_token_and_is_not_asked(
    training, proxy, dashboard, run, words, printed
):
    training("01")
    url, seen = dashboard
    code, out, errors = run(*words, "--address", url)
    assert (code, proxy) == (0, []), errors
    assert printed in out
    assert {authorization for *_, authorization in seen} == {f"Bearer {SECRET}"}


def test_the_checks_of_a_cluster_ask_no_proxy_either(training, proxy, dashboard, run):
    training("01")
    # It is no real cluster, and refuses nobody: what counts is who was asked.
    code, out, _ = run("doctor", "--cluster", "--address", dashboard[0])
    assert (code, proxy) == (1, [])
    assert "token authentication is on" in out


def test_a_submission_asks_no_proxy(training, proxy, dashboard, run, tmp_path):
    training("01")
    code, _, errors = run(
        "submit", "--address", dashboard[0], "--working-dir", tmp_path, "--python", "python",
        "--no-watch", "verify", tmp_path,
    )  # fmt: skip
    assert (code, proxy) == (0, []), errors
    assert ("POST", "/api/jobs/", f"Bearer {SECRET}") in dashboard[1]
    assert any(method == "PUT" for method, *_ in dashboard[1]), "no package was sent"


def test_another_address_is_reached_straight_too_and_the_proxy_is_named(proxy, refused):
    line = refused("jobs", "list", "--address", "http://127.0.0.2:1")
    assert "HTTP_PROXY is not used for clusters: docs/security.md" in line
    assert proxy == []


def test_a_password_of_netrc_does_not_replace_the_token(dashboard, run, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run("jobs", "list", "--address", dashboard[0])
    assert {authorization for *_, authorization in dashboard[1]} == {f"Bearer {SECRET}"}


def test_the_question_to_the_gcs_goes_past_the_proxy(proxy):
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    from terrafm.clusters.joining import _answer
    from terrafm.clusters.token import Token

    asked = []

    class Gcs(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def GetClusterId(self, request, context):
            asked.append(dict(context.invocation_metadata()).get("authorization"))
            return gcs_service_pb2.GetClusterIdReply()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Gcs(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert _answer(address, Token(SECRET, "test")) is grpc.StatusCode.OK
        assert (proxy, asked) == ([], [f"Bearer {SECRET}"])
        # A plain channel would have shown it.
        with grpc.insecure_channel(address) as plain, pytest.raises(grpc.RpcError):
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(plain).GetClusterId(
                gcs_service_pb2.GetClusterIdRequest(), timeout=5
            )
        assert proxy
    finally:
        server.stop(0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_cluster_of_this_machine_shows_its_token_to_no_proxy(training, proxy, tmp_path):
    training("01")
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = own | {"HOME": str(tmp_path), "TERRAFM_CLUSTER_DIR": str(tmp_path / "c")}

    def terrafm(*words):
        done = subprocess.run(
            [sys.executable, "-m", "terrafm", *words], capture_output=True, text=True,
            env=environment, timeout=600, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    terrafm("cluster", "up", "--local", "--workers", "1")
    try:
        status = json.loads(terrafm("cluster", "status", "--json"))
        environment["RAY_AUTH_TOKEN_PATH"] = status["token_path"]
        environment["RAY_API_SERVER_ADDRESS"] = status["dashboard_url"]
        terrafm("doctor", "--cluster")
        archive = ["--source", "synthetic", "--input", "synthetic:cells=2,seed=0,px=264"]
        out = ["--output", str(tmp_path / "tiles"), "--tile-size", "132"]
        assert "8 tiles" in terrafm("submit", "ingest", *archive, *out)
        jobs = json.loads(terrafm("jobs", "list", "--json"))["jobs"]
        assert [job["status"] for job in jobs] == ["SUCCEEDED"]
        assert "8 tiles" in terrafm("jobs", "logs", jobs[0]["id"], "--follow")
        # As a driver that joins, with the token on.
        environment["RAY_ADDRESS"] = status["address"]
        terrafm("ingest", *archive, "--output", str(tmp_path / "again"), "--tile-size", "132")
    finally:
        terrafm("cluster", "down")
    # Ray itself asks which cloud it is in, of addresses that are no cluster's.
    cluster = ("127.0.0.1", "localhost", status["address"].partition(":")[0])
    assert not any(host in one.splitlines()[0] for one in proxy for host in cluster)
    secret = (tmp_path / status["token_path"]).read_text().strip()
    assert not any(secret in one or "authorization" in one.lower() for one in proxy)


# Two writers (16)


def writers(data, checkpoint, output):
    """Each verb that writes a folder."""
    pretrain = ["--config", "demo", "--data", data, "--output", output]
    archive = ["--source", "synthetic", "--input", "synthetic:cells=2,seed=0,px=264"]
    return {
        "pretrain": ["pretrain", *pretrain],
        "ingest": ["ingest", *archive, "--output", output],
        "append": ["ingest", "--append", *archive, "--output", output],
        "embed": ["embed", "--weights", "w", "--data", data, "--output", output],
        "average": ["checkpoint", "average", checkpoint, checkpoint, "--output", output],
        "sweep": ["sweep", "--config", "sweep_demo", "--data", data, "--output", output],
    }


@pytest.mark.parametrize("verb", ["pretrain", "ingest", "append", "embed", "average", "sweep"])
@pytest.mark.parametrize("spelled", ["{}", "{}/", "file://{}", "link"])
def test_a_second_writer_is_refused_whatever_it_calls_the_folder(
    verb, spelled, refused, small_dataset, checkpoint, tmp_path
):
    if verb == "sweep" and spelled != "{}":
        pytest.skip("once is enough: its configuration is checked first, which takes long")
    output = tmp_path / "run"
    with lease(output, "terrafm pretrain"):
        (tmp_path / "link").symlink_to(output)
        name = str(tmp_path / "link") if spelled == "link" else spelled.format(output)
        line = refused(*writers(small_dataset, checkpoint, name)[verb])
        assert list_names(output) == [".lease"]
    for part in (f"{output} has a writer already: terrafm pretrain on {socket.gethostname()}",
                 f"process {os.getpid()}, since 20"):  # fmt: skip
        assert part in line
    assert not output.exists()


def test_in_a_store_too(refused, small_dataset, checkpoint, s3_bucket):
    with lease(f"{s3_bucket}/run", "terrafm pretrain"):
        for name in (f"{s3_bucket}/run/", f"{s3_bucket}/run".replace("s3://", "s3a://")):
            line = refused(*writers(small_dataset, checkpoint, name)["pretrain"])
            assert f"{s3_bucket}/run has a writer already: terrafm pretrain on " in line
        assert list_names(f"{s3_bucket}/run") == [".lease"]


STEPS = [
    "train.steps=400", "train.global_batch=4", "head.num_prototypes=32", "data.local_crops=2",
    "train.checkpoint_every=5", "train.log_every=1", "train.standby=false",
    "train.precision=float32",
]  # fmt: skip


def start_pretrain(data, output, log):
    sets = [part for setting in STEPS for part in ("--set", setting)]
    words = ["pretrain", "--config", "demo", "--data", data, "--output", str(output), *sets]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "terrafm", *words], stdout=file, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip


def wait_for(found, process, log, seconds=500):
    deadline = time.monotonic() + seconds
    while not found():
        assert process is None or process.poll() is None, Path(log).read_text()
        assert time.monotonic() < deadline, Path(log).read_text()
        time.sleep(0.3)


def kill_family(process):
    import psutil

    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    for one in left:
        one.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_pretrains_at_once_a_kill_and_a_sigterm(training, small_dataset, tmp_path):
    training("16")
    training("18")
    output, logs = tmp_path / "run", [tmp_path / f"{n}.log" for n in range(4)]
    started = [start_pretrain(small_dataset, output, logs[n]) for n in (0, 1)]
    try:
        wait_for(lambda: any(p.poll() is not None for p in started), None, logs[0])
        loser = next(n for n in (0, 1) if started[n].poll() is not None)
        winner = 1 - loser
        lines = [line for line in logs[loser].read_text().splitlines() if line.strip()]
        assert started[loser].returncode == 2, lines
        assert len(lines) == 1, lines
        assert f"process {started[winner].pid}, since" in lines[0]
        checkpoints = output / "checkpoints"
        wait_for(lambda: "step_00000005" in list_names(str(checkpoints)), started[winner],
                 logs[winner])  # fmt: skip
        # While it is at work a third one, of the same by another name.
        third = start_pretrain(small_dataset, f"{output}/", logs[2])
        started.append(third)
        assert third.wait(300) == 2, logs[2].read_text()
        assert started[winner].poll() is None
        kill_family(started[winner])
        fourth = start_pretrain(small_dataset, output, logs[3])
        started.append(fourth)
        before = max(list_names(str(checkpoints)))
        wait_for(lambda: max(list_names(str(checkpoints))) > before, fourth, logs[3])
        import psutil

        family = psutil.Process(fourth.pid).children(recursive=True)
        assert family
        fourth.send_signal(signal.SIGTERM)
        assert fourth.wait(120) == 143, logs[3].read_text()
        told = [line for line in logs[3].read_text().splitlines() if line.strip()]
        assert told[-1] == "terrafm: ended by SIGTERM; what is done stays", told
        assert not any("***" in line or "Traceback" in line for line in told), told
        # Its children have ended with it, and nobody has the folder any more.
        _, left = psutil.wait_procs(family, timeout=60)
        assert left == []
        with lease(output, "x"):
            pass
    finally:
        for process in started:
            kill_family(process)


# Printed commands (17)

NAMES = [
    "plain", "r moved #1", "it's", '"q"', "a;b", "$(touch x)", "`x`", "a&b|c", "~", "*", "!x",
    "größe", "-flag", "", "back\\slash", "two\nlines", "tab\tbed", "\x1b[31mred", "\u2028",
    "a'b\nc\\d", "\udcff\udce9", "\u200b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_is_read_back_by_a_shell(name):
    line = command_line("printf", "%s", name)
    assert line.isprintable() or name in ("größe",), repr(line)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True
    )
    assert done.stdout == os.fsencode(name)


def test_words_that_need_none_have_no_quotes():
    words = ["terrafm", "jobs", "list", "--address", "http://127.0.0.1:8265", "s3://b/run-1"]
    assert command_line(*words) == " ".join(words)


@pytest.mark.parametrize("name", ["r moved #1", "it's", "two\nlines: [", "größe"])
def test_the_first_line_of_config_runs_the_run_again(training, name, small_dataset, tmp_path):
    import yaml

    from terrafm.train.run import _write_config
    from terrafm.train.setup import TrainingSetup

    training("17")
    setup = TrainingSetup.open(load_config("demo", []), small_dataset)
    output = str(tmp_path / name)
    _write_config(setup, output)
    text = Path(output, "config.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# terrafm pretrain ")
    shown = subprocess.run(
        ["bash", "-c", first.removeprefix("# ").replace("terrafm", "printf '%s\\0'", 1)],
        capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True,
    )  # fmt: skip
    words = os.fsdecode(shown.stdout).split("\0")[:-1]
    assert words == [
        "pretrain", "--config", f"{output}/config.yaml", "--data", small_dataset,
        "--output", output,
    ]  # fmt: skip
    assert yaml.safe_load(text) == yaml.safe_load(setup.config.to_yaml())


def test_the_next_command_of_an_average_is_quoted():
    from terrafm.train.checkpoints.average import describe

    text = describe({"uri": "/a b/#1", "averaged": [{"uri": "x", "step": 1}] * 2})
    words = shlex.split(text.splitlines()[-1])
    assert words[:4] == ["terrafm", "export", "--checkpoint", "/a b/#1"]


# Hosts without a home (18)

NAMELESS = """
import pwd, sys
def nobody(_):
    raise KeyError("no name")
pwd.getpwuid = nobody
from terrafm.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs", "list", "--address", "http://127.0.0.1:1"], "cannot reach a cluster"),
        (["cluster", "status"], "no local cluster runs"),
        (["cluster", "down"], "no home directory: name a folder for the cluster in TERRAFM_"),
        (["cluster", "up", "--local"], "no home directory: name a folder for the cluster in TERR"),
        (["doctor", "--cluster"], "no local cluster runs"),
    ],
)
@pytest.mark.parametrize("home", [None, "/proc/no-home", "/dev/null"])
def test_without_a_home_or_a_name_it_is_one_line(training, words, said, home):
    training("18")
    environment = {"PATH": os.environ["PATH"]} | ({} if home is None else {"HOME": home})
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS, *words], capture_output=True, text=True,
        env=environment, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    if home is not None and said.startswith("no home"):
        said = f"cannot make {home}/.terrafm/cluster ("
    assert said in lines[0]


# An address that is none (18)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "http://127.0.0.1:8265",
            "is the address of a dashboard, which takes jobs: terrafm submit",
        ),
        ("https://ray.example", "is the address of a dashboard"),
        ("127.0.0.1:1", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 (unavailable)"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at RAY_ADDRESS=no-such-host"),
        ("localhost", "Invalid address format: localhost"),
    ],
)
def test_a_wrong_ray_address_is_one_line_soon(
    training, address, said, refused, monkeypatch, tmp_path
):
    training("18")
    monkeypatch.setenv("RAY_ADDRESS", address)
    archive = ["--source", "synthetic", "--input", "synthetic:cells=1,seed=0,px=264"]
    began = time.monotonic()
    line = refused("ingest", *archive, "--output", tmp_path / "t", "--tile-size", "132")
    assert said in line
    assert "RAY_ADDRESS wants the host:port of the cluster's GCS" in line
    # Ten seconds for a GCS that may start again; the rest is the archive.
    assert time.monotonic() - began < 60


# Small files that a crash has cut short (18)

TORN = [b"", b"{", b'{"fingerprint": "ab', b"[]", b"null", b"\x00" * 64, b"\xff\xfe"]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_record_of_the_dataset_starts_a_run_that_has_not_trained(
    training, content, small_dataset, tmp_path
):
    from terrafm.train.run import _check_output, _open_setup, _write_config

    training("18")
    output, config = str(tmp_path / "run"), load_config("demo", [])
    _write_config(_open_setup(config, small_dataset, output), output)
    write_bytes(f"{output}/dataset.json", content)
    setup = _open_setup(config, small_dataset, output)
    assert _check_output(setup, output).resumed_from == 0
    write_bytes(f"{output}/config.yaml", content)
    assert _check_output(_open_setup(config, small_dataset, output), output).resumed_from == 0


def read_back(folder):
    """What reads each of the other small files."""
    from terrafm.embed.schema import read_manifest as read_embedding
    from terrafm.train.checkpoints.best import held_reasons, read_best
    from terrafm.train.loop import FAILURE_FILE, read_failure
    from tuning.trial import _began, read_scores

    return {
        "best.json": lambda: read_best(folder),
        "held.json": lambda: held_reasons(folder),
        FAILURE_FILE: lambda: read_failure(folder),
        "origin.json": lambda: _began(folder),
        "scores.jsonl": lambda: read_scores(folder),
        "embedding.json": lambda: read_embedding(folder),
    }


@pytest.mark.parametrize("content", [b"{", b'{"a": 1', b"\xff\xfe"])
@pytest.mark.parametrize(
    "name",
    ["best.json", "held.json", "failure.json", "origin.json", "scores.jsonl", "embedding.json"],
)
def test_a_torn_small_file_is_named_in_one_line(name, content, tmp_path):
    readers = read_back(str(tmp_path))
    name = next(found for found in readers if name.split(".")[0] in found)
    write_bytes(tmp_path / name, content)
    with pytest.raises(TerraFMError) as error:
        readers[name]()
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_torn_ids_of_trackers_cost_no_run(tmp_path, caplog):
    from terrafm.train.trackers import TRACKERS_FILE, TrackedRun

    write_bytes(tmp_path / TRACKERS_FILE, b'{"mlflow": ')
    run = TrackedRun(str(tmp_path))
    assert run.known_id("mlflow") is None
    assert TRACKERS_FILE in caplog.text
    run.remember_id("mlflow", "7")
    assert run.known_id("mlflow") == "7"


# SIGTERM (18)


def test_sigterm_of_a_command_that_waits_is_one_line(training, dashboard):
    training("18")
    process = subprocess.Popen(
        [sys.executable, "-m", "terrafm", "jobs", "logs", "hangs", "--follow", "--address",
         dashboard[0]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "followed\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines() == ["terrafm: ended by SIGTERM; what is done stays"]


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), OSError("gone")])
def test_what_a_library_makes_of_sigterm_does_not_hide_it(raised):
    """Ray's calls that wait raise another exit in place of ours."""
    from terrafm.cli.ending import TerminatedError, ends_by_sigterm

    def waiting_call():
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            raise raised from None

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError) as end, ends_by_sigterm():
        waiting_call()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    # And without one it is what it was.
    with pytest.raises(type(raised)), ends_by_sigterm():
        raise raised


# One name of a place (20)

SAME = {
    "disk": ["{here}/run", "run", "run/", "./run", "run//", "././run", "x/../run",
             "file://{here}/run", "file://{here}/run/", "{here}//run", "link"],
    "store": ["s3://bucket/run", "s3://bucket/run/", "s3a://bucket/run", "s3a://bucket/run/",
              "s3://bucket//run", "s3://bucket/run//"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SAME.items() for name in names]
)
def test_all_spellings_of_a_place_are_one_run(training, kind, name, tmp_path, monkeypatch):
    training("20")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("run")

    def key(output):
        words = ["pretrain", "--config", "demo", "--data", "d", "--output", output]
        return _run_key(read_command(get_command(app), words, Path()))

    first = SAME[kind][0].format(here=tmp_path)
    assert key(name.format(here=tmp_path)) == key(first)
    assert canonical(name.format(here=tmp_path)) == canonical(first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("run", "run2"), ("run", "Run"), ("s3://bucket/run", "s3://bucket/run/1"),
        ("s3://bucket/run", "s3://bucket/Run"), ("s3://bucket/run", "s3://bucket2/run"),
        ("https://host/a//b", "https://host/a/b"), ("run", "run "),
    ],
)  # fmt: skip
def test_other_places_have_other_names(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("s3a://b//x/", "s3://b/x"), ("s3://b", "s3://b"), ("s3://b/", "s3://b"),
        ("file:///a//b/", "/a/b"), ("//a/b", "/a/b"), ("/", "/"), ("/a/./b", "/a/b"),
        ("https://h/x?y=a//b", "https://h/x?y=a//b"),
    ],
)  # fmt: skip
def test_the_name_of_a_place(name, wanted):
    assert absolute(name) == wanted


def test_one_archive_by_two_names_is_one_archive(tmp_path):
    from terrafm.data.ingest import canonical_input

    (tmp_path / "archive").mkdir()
    (tmp_path / "link").symlink_to("archive")
    assert canonical_input(f"{tmp_path}/link/") == canonical_input(f"file://{tmp_path}/archive")
    assert canonical_input("synthetic:cells=9") == "synthetic:cells=9"

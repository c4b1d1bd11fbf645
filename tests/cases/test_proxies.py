"""Cases of a proxy in the environment: it is shown no token, and asked nothing."""

import json
import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest
from stand_ins import SECRET


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
        secret = Path(status["token_path"]).read_text().strip()
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
    asked = [one for one in proxy if any(host in one.splitlines()[0] for host in cluster)]
    assert asked == []
    assert not any(secret in one or "authorization" in one.lower() for one in proxy)

"""Passwords and signatures in addresses: nowhere but in the request that they are for."""

import base64
import contextlib
import json
import logging
import shutil
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from terrafm.config import load_config
from terrafm.config.yaml_text import parse_yaml
from terrafm.errors import UsageError
from terrafm.storage import exists, read_bytes, resolve, to_json
from terrafm.storage.addresses import check_address, recorded, without_secrets
from terrafm.terminal import PlainConsole, PlainFormatter
from terrafm.train.driver.checks import check_run
from terrafm.train.driver.pretrain import _write_config
from terrafm.train.metrics.trackers import TrackedRun

PASSWORD, SIGNATURE = "pass-w0rd", "s1gnature"

STRIPPED = {
    "s3://KEY:SECRET@bucket/x": "s3://bucket/x",
    # As AWS makes them, with a slash and a plus.
    "s3://AKIA0:ab/c+d/e@bucket/x": "s3://bucket/x",
    "S3A://KEY:SECRET@bucket": "S3A://bucket",
    "https://user:pw@host/a?b=c": "https://host/a?b=c",
    "https://user:p@w@host:8080/a": "https://host:8080/a",
    "https://user:p/w@host/a": "https://host/a",
    "https://ghp_token@host/a": "https://host/a",
    "https://user:@host/a": "https://host/a",
    "stac+https://user:pw@host/a#b": "stac+https://host/a#b",
    "stac+https://token@host/a?api_key=x#b": "stac+https://host/a?api_key=***#b",
    "postgresql://user:pw@host/mlflow": "postgresql://host/mlflow",
    "model.init=https://u:p@h/w and 's3://K:S@b'": "model.init=https://h/w and 's3://b'",
    "https://h/w?X-Amz-Date=1&X-Amz-Signature=ab12&x=y": (
        "https://h/w?X-Amz-Date=1&X-Amz-Signature=***&x=y"
    ),
    "https://h/w?X-Amz-Credential=AK%2Fus&X-Amz-Security-Token=zz": (
        "https://h/w?X-Amz-Credential=***&X-Amz-Security-Token=***"
    ),
    "https://a.blob.core.windows.net/c/x?sv=2022&se=2030&sig=a%2Bb%3D": (
        "https://a.blob.core.windows.net/c/x?sv=2022&se=2030&sig=***"
    ),
    "https://h/my scene.tif?token=abc#part": "https://h/my scene.tif?token=***#part",
    "https://h/x?X-Goog-Signature=ab (and more)": "https://h/x?X-Goog-Signature=*** (and more)",
}
KEPT = (
    "s3://bucket/lr[12]/a@b:c?d",
    "s3://arn:aws:s3:eu-west-1:123:accesspoint/name/a@b",
    "abfs://container@account.dfs.core.windows.net/x",
    "hdfs://user@host/x",
    "hf://datasets/owner/name@main/x:y@z",
    "http://127.0.0.1:9000/bucket/a@b",
    "http://[::1]:9000/bucket/a@b",
    "timm:vit@https://host/x",
    "copernicus:name@/folder",
    "/data/a:b@c?token=x",
    "https://host/x?design=1&signal=2&assigned=3",
    "synthetic:cells=9",
)


@pytest.mark.parametrize(("address", "shown"), STRIPPED.items())
def test_secrets_are_taken_out(address, shown):
    assert without_secrets(address) == shown
    assert without_secrets(shown) == shown
    assert recorded({"a": [address, 1], "b": (address,)}) == {"a": [shown, 1], "b": [shown]}


@pytest.mark.parametrize("address", KEPT)
def test_what_is_no_secret_stays(address):
    assert without_secrets(address) == address
    check_address(address)


def test_what_is_shown_and_written_has_none(capsys):
    address = f"https://user:{PASSWORD}@host/{'x' * 100}?sig={SIGNATURE}"
    console = PlainConsole(width=40)
    console.print(f"wrote {address}", soft_wrap=True)
    console.print(f"wrote {address}")
    line = logging.LogRecord("terrafm", logging.WARNING, "", 0, "%s fails", (address,), None)
    shown = capsys.readouterr().out + PlainFormatter().format(line)
    shown += to_json({"a": [address], "b": float("nan")}, indent=1)
    run = TrackedRun(address, config={"model": {"init": address}})
    shown += str(run.parameters())
    assert "host/" in shown
    assert PASSWORD not in shown
    assert SIGNATURE not in shown


REFUSED = (
    ("verify", "{}"),
    ("inspect", "{}"),
    ("tile", "{}", "name", "--output", "out"),
    ("ingest", "--source", "synthetic", "--input", "synthetic:cells=1", "--output", "{}"),
    ("ingest", "--source", "major_tom", "--input", "{}", "--output", "out"),
    ("pretrain", "--config", "demo", "--data", "{}", "--output", "out"),
    ("pretrain", "--config", "demo", "--data", "{}", "--output", "out", "--dry-run"),
    ("pretrain", "--config", "demo", "--data", "d", "--output", "o", "--set", "model.init={}"),
    ("export", "--checkpoint", "{}", "--output", "out", "--format", "hf"),
    ("embed", "--weights", "w", "--data", "d", "--output", "{}"),
    ("checkpoint", "average", "--checkpoints", "{}", "--output", "out"),
    ("sweep", "--config", "sweep_demo", "--data", "{}", "--output", "out"),
    ("submit", "verify", "{}"),
)


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: f"{words[0]} {words[-1]}")
def test_a_key_in_the_name_of_a_bucket_is_refused_at_the_start(refused, words, tmp_path):
    said = refused(*[word.format(f"s3://AKIAKEY:{PASSWORD}/x@bucket/name") for word in words])
    assert "s3://bucket/name was given with a key or password in it" in said
    assert PASSWORD not in said
    assert "AKIAKEY" not in said


def test_one_in_a_configuration_is_refused_as_well(refused, small_dataset, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"base: demo\nmodel: {{init: 's3://KEY:{PASSWORD}@bucket/w.pth'}}\n")
    said = refused(
        "pretrain", "--config", file, "--data", small_dataset, "--output", tmp_path / "run"
    )
    assert "s3://bucket/w.pth was given with a key or password in it" in said
    assert PASSWORD not in said


def test_what_names_others_cannot_bring_one_in():
    with pytest.raises(UsageError, match="s3://bucket/x was given with") as found:
        resolve(f"s3://KEY:{PASSWORD}@bucket/x")
    assert PASSWORD not in str(found.value)


def test_none_is_sent_to_a_cluster(refused):
    for address in (f"https://u:{PASSWORD}@host/x", f"https://host/x?sig={PASSWORD}"):
        said = refused("submit", "--address", "http://127.0.0.1:1", "verify", address)
        assert "everyone on the cluster could read" in said
        assert PASSWORD not in said


@pytest.fixture
def served(tmp_path):
    """Address, with password and signature, under which a server shows the files of a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    wanted = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            name, _, query = self.path.partition("?")
            allowed = self.headers.get("Authorization") == wanted and f"sig={SIGNATURE}" in query
            file = folder / name.strip("/")
            content = file.read_bytes() if allowed and file.is_file() else b""
            self.send_response(403 if not allowed else 200 if file.is_file() else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - the library's own name

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    yield folder, lambda name: f"http://user:{PASSWORD}@{host}/{name}?sig={SIGNATURE}"
    server.shutdown()
    server.server_close()


def secrets_below(folder):
    """Files of a folder that hold the password or the signature."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files
    words = (PASSWORD.encode(), SIGNATURE.encode())
    return [path.name for path in files if any(word in path.read_bytes() for word in words)]


@pytest.fixture
def weights(checkpoint, served, run, tmp_path):
    """Address of weights on the server."""
    folder, address = served
    code, _, said = run(
        "export", "--checkpoint", checkpoint, "--format", "safetensors",
        "--output", tmp_path / "w.safetensors",
    )  # fmt: skip
    assert code == 0, said
    shutil.copy(tmp_path / "w.safetensors", folder)
    return address("w.safetensors")


def test_a_server_with_a_password_is_read(weights):
    assert exists(weights)
    assert len(read_bytes(weights, 10**9)) > 1000


def test_embeddings_hold_neither(run, weights, small_dataset, tmp_path):
    command = (
        "embed", "--weights", weights, "--data", small_dataset, "--output", tmp_path / "out",
        "--workers", "0",
    )  # fmt: skip
    code, out, said = run(*command)
    assert code == 0, said
    assert "embeddings of length" in out
    assert secrets_below(tmp_path / "out") == []
    assert PASSWORD not in out + said
    assert "127.0.0.1" in (tmp_path / "out" / "job.json").read_text()
    # And the command, given again, knows its folder.
    code, out, _ = run(*command)
    assert (code, "nothing to do" in out) == (0, True)


def test_a_run_holds_neither_and_goes_on_with_another_signature(
    run, weights, small_dataset, checkpoint, tmp_path
):
    output = tmp_path / "run"
    words = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32"]
    config = load_config("demo", [*words, f"model.init={weights}"])
    checked = check_run(config, small_dataset, str(output), None, False)
    _write_config(checked.setup, str(output))
    assert secrets_below(output) == []
    written = parse_yaml((output / "config.yaml").read_bytes())
    assert written["model"]["init"].endswith("/w.safetensors?sig=***")
    from terrafm.train.checkpoints.store import save_checkpoint

    distillation = checked.setup.plain_distillation()
    state = checked.setup.state(2, distillation.engine.state(), distillation)
    save_checkpoint(str(output / "checkpoints"), state)
    assert secrets_below(output) == []
    renewed = load_config("demo", [*words, f"model.init={weights.replace(SIGNATURE, 'other')}"])
    again = check_run(renewed, small_dataset, str(output), None, False)
    assert (again.resumed_from, list(again.told)) == (2, [])


def test_a_dry_run_and_a_refusal_show_neither(run, weights, small_dataset, tmp_path):
    words = [
        "pretrain", "--config", "demo", "--data", small_dataset, "--output", tmp_path / "run",
        "--dry-run", "--set",
    ]  # fmt: skip
    for address, code in ((weights, 0), (weights.replace("w.safe", "gone.safe"), 2)):
        for form in ((), ("--json",)):
            found, out, said = run(*words, f"model.init={address}", *form)
            assert (found, PASSWORD in out + said, SIGNATURE in out + said) == (code, False, False)


def test_a_tracker_is_told_neither(weights, tmp_path):
    pytest.importorskip("mlflow")
    from terrafm.train.metrics.tracker_clients import MLflow

    config = load_config("demo", [f"model.init={weights}"]).model_dump(mode="json")
    (tmp_path / "run").mkdir()
    tracker = MLflow(TrackedRun(str(tmp_path / "run"), config=config))
    tracker.close()
    database = sqlite3.connect(tmp_path / "run" / "mlflow.db")
    parameters = dict(database.execute("select key, value from params"))
    assert parameters["model.init"].endswith("w.safetensors?sig=***")
    assert json.dumps(parameters).count(PASSWORD) == 0
    assert secrets_below(tmp_path / "run") == []

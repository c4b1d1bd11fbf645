"""Metrics for operators: a real run on a Ray that exports them, its scrape, and the dashboard.

Where Prometheus is installed (Debian: prometheus) it scrapes and answers every query.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from clusters import free_port, head_ports, wait_until
from commands import start

from terrafm.clusters.local import LOOPBACK_ONLY
from terrafm.clusters.state import make_token
from terrafm.train.metrics.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MONITORING = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
# Of GPUs alone.
GPU_ONLY = {"ray_terrafm_mfu_ratio", "ray_terrafm_device_memory_bytes"}
# Ray's own command gives up on a busy machine.
PATIENT_RAY = """
from ray.scripts.scripts import cli
from terrafm.clusters.patience import patient_start
with patient_start():
    cli()
"""
HEAD = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "grpc_proxy": "",
    # Those of dashboard and autoscaler: nobody looks for them here.
    "DASHBOARD_METRIC_PORT": "-1", "AUTOSCALER_METRIC_PORT": "-1",
}  # fmt: skip
# A gauge is gone after two of these: 2 s would be too few on a busy machine.
OFTEN = {"RAY_metrics_report_interval_ms": "4000"}


@contextmanager
def ended(process):
    """Kills a process of this test with all its children."""
    try:
        yield
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            family = [*own.children(recursive=True), own]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)


@pytest.fixture
def ray_with_metrics(short_folder):
    """Environment of a command that joins a Ray, and the port of its metrics; all on loopback."""
    address = f"127.0.0.1:{free_port()}"
    make_token(short_folder / "token")
    joining = {
        **LOOPBACK_ONLY, **OFTEN, "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(short_folder / "token"),
    }  # fmt: skip
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ports = head_ports()
    with open(short_folder / "head.log", "w") as log:
        head = subprocess.Popen(
            [sys.executable, "-c", PATIENT_RAY, "start", "--head", "--block", "--num-cpus", "4",
             "--port", address.rpartition(":")[2], "--temp-dir", str(short_folder / "ray"),
             "--include-dashboard", "true", "--dashboard-host", "127.0.0.1",
             "--dashboard-port", str(free_port()), "--node-ip-address", "127.0.0.1", *ports,
             "--object-store-memory", str(2**28)],
            env=others | joining | HEAD, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    with ended(head):
        log = short_folder / "head.log"
        wait_until(lambda: "Ray runtime started" in log.read_text(), "Ray's start", head, 300, log)
        yield {"RAY_ADDRESS": address, **joining}, int(ports[-1]), short_folder / "ray"


def scraped(port):
    """Names and tags of all metrics that the node's endpoint serves: [(name, tags, value)]."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        if match := re.match(r"(ray_terrafm_\w+)\{(.*)\} (\S+)$", line):
            tags = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
            found.append((match[1], tags, float(match[3])))
    return found


def names(found):
    return {name for name, _, _ in found}


def everything(wanted, port, run, log):
    """The first scrape that has all names."""
    seen = [[]]

    def complete():
        seen[0] = scraped(port) or seen[0]
        return wanted <= names(seen[0])

    try:
        wait_until(complete, "all of the dashboard", run, 400, log)
    except AssertionError as error:
        raise AssertionError(f"{error}; missing {sorted(wanted - names(seen[0]))}") from None
    return seen[0]


def panels():
    return json.loads((MONITORING / "terrafm-dashboard.json").read_text())["panels"]


def queries():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def names_of(query):
    return set(re.findall(r"\bray_\w+", query))


@contextmanager
def prometheus(folder, ray_folder):
    """A real Prometheus with our configuration; yields what asks it."""
    port = free_port()
    text = (MONITORING / "prometheus.yml").read_text()
    text = text.replace("/tmp/ray/prom", f"{ray_folder}/prom").replace("15s", "1s")
    (folder / "prometheus.yml").write_text(text)
    with open(folder / "prometheus.log", "w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ask(query):
        query = query.replace("$run", ".*").replace("$__rate_interval", "1m")
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    with ended(process):
        yield ask


def test_what_a_run_exports_is_what_the_dashboard_asks_for(
    ray_with_metrics, small_dataset, tmp_path
):
    environment, port, ray_folder = ray_with_metrics
    output, log = tmp_path / "run", tmp_path / "run.log"
    settings = ["train.steps=100000", "train.global_batch=4", "train.micro_batch=4",
                "train.checkpoint_every=10", "train.log_every=1", "head.num_prototypes=32",
                "train.keep_checkpoints=1", "train.resize_interval=3600"]  # fmt: skip
    run = start(
        *("pretrain", "--config", "demo", "--data", small_dataset, "--output", output),
        *(word for setting in settings for word in ("--set", setting)),
        log=log, environment=environment,
    )  # fmt: skip
    wanted = {name for query in queries() for name in names_of(query)} - GPU_ONLY
    with ended(run):
        found = everything(wanted, port, run, log)
        assert {tags["run"] for _, tags, _ in found} == {str(output)}
        values = {(name, tags.get("reason") or tags.get("alarm")): v for name, tags, v in found}
        assert values["ray_terrafm_total_steps", None] == 100_000
        assert values["ray_terrafm_workers", None] == 1
        assert values["ray_terrafm_restarts", "failure"] == 0
        assert values["ray_terrafm_restarts", "resize"] == 0
        assert values["ray_terrafm_tiles_per_second", None] > 0
        assert 0 <= values["ray_terrafm_data_wait_ratio", None] <= 1
        assert values["ray_terrafm_alarm", "one_prototype"] in (0, 1)
        assert values["ray_terrafm_checkpoint_seconds_count", None] >= 1
        lines = read_metrics(str(output))
        last = values["ray_terrafm_step", None]
        assert 1 <= last <= lines[-1]["step"]
        assert values["ray_terrafm_loss_nats", None] in [line["loss"] for line in lines]
        if shutil.which("prometheus"):
            check_with_prometheus(tmp_path, ray_folder)


def check_with_prometheus(tmp_path, ray_folder):
    """Every query of the dashboard has an answer, but for those of a GPU."""
    with prometheus(tmp_path, ray_folder) as ask:

        def unanswered():
            try:
                asked = [q for q in queries() if not names_of(q) & GPU_ONLY]
                return [query for query in asked if not ask(query)]
            except OSError:
                return ["Prometheus itself"]

        deadline = time.monotonic() + 120
        while (left := unanswered()) and time.monotonic() < deadline:
            time.sleep(1)
        assert left == []
        # A GPU's queries are sound all the same.
        assert [ask(q) for q in queries() if names_of(q) & GPU_ONLY] == [[], []]
        (done,) = ask(panels()[0]["targets"][0]["expr"])
        assert 0 < float(done["value"][1]) < 1

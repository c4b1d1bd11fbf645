"""What a real S3 server, killed, throttled and stalled, cannot change."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from commands import PATIENCE, clean_environment, ingest, kill_session, start_ingest, terrafm
from fault_proxy import Every, Faults
from s3_servers import forget_clients

from terrafm.data.shards.dataset import Dataset
from terrafm.storage import join, list_names, read_bytes, write_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def content(uri):
    """Fingerprint, and every byte of the dataset's own files."""
    manifest = Dataset.open(uri).manifest
    names = [manifest.index.name, *(shard.name for shard in manifest.shards)]
    return manifest.fingerprint, {name: read_bytes(join(uri, name)) for name in names}


@pytest.fixture(scope="module")
def calm(archive, tmp_path_factory):
    """Content of an undisturbed ingest."""
    output = tmp_path_factory.mktemp("calm") / "dataset"
    ingest(archive, output, {})
    return content(str(output))


FAULTS = {
    "throttled": Faults(slow_down=Every(7, 2)),
    "reset": Faults(reset=Every(7)),
    "stalled": Faults(stall=Every(15), stall_seconds=30),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_ingest_through_faults_gives_the_same_bytes(fault, archive, calm, real_server, real_bucket):
    with real_server.behind(FAULTS[fault]) as (environment, proxy):
        ingest(archive, join(real_bucket, "dataset"), environment)
        kinds = sum(count for name, count in proxy.counters.items() if name != "requests")
        assert kinds >= 3
    assert content(join(real_bucket, "dataset")) == calm


STREAM = """
import hashlib, sys
import ray
from terrafm.config import DataConfig
from terrafm.data.shards.dataset import Dataset
from terrafm.data.samples.loader import RankLayout
from terrafm.data.samples.plan import Plan
from terrafm.data.samples.stream import stream_batches
ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
dataset = Dataset.open(sys.argv[1])
config = DataConfig(global_size=32, local_size=16, local_crops=2, rows_per_block=8)
digest = hashlib.sha256()
batches = stream_batches(
    dataset, Plan(dataset.land_cover, seed=1, exponent=0.5), config, seed=1,
    layout=RankLayout(16, 1, 0, 16), start_step=0, stop_step=int(sys.argv[2]),
    high_frequency=(), cpus=1,
)
for number, batch in enumerate(batches):
    for crops in (batch.global_crops, batch.local_crops):
        for name in sorted(crops.pixels):
            digest.update(crops.pixels[name].numpy().tobytes())
    print(number, flush=True)
print(digest.hexdigest())
"""


def start_stream(uri, steps, environment):
    return subprocess.Popen(
        [sys.executable, "-c", STREAM, str(uri), str(steps)],
        env=clean_environment() | environment | PATIENCE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def digest_of(stream):
    out, errors = stream.communicate(timeout=280)
    assert stream.returncode == 0, errors[-2000:]
    return out.split()[-1]


@pytest.fixture
def remote_dataset(archive, real_server, real_bucket):
    uri = join(real_bucket, "dataset")
    ingest(archive, uri, real_server.environment)
    return uri


def test_the_stream_through_faults_gives_the_same_batches(remote_dataset, real_server):
    calm = digest_of(start_stream(remote_dataset, 12, real_server.environment))
    mixed = Faults(
        latency=0.005, slow_down=Every(11, 3), reset=Every(17), stall=Every(61), stall_seconds=30
    )
    with real_server.behind(mixed) as (environment, proxy):
        assert digest_of(start_stream(remote_dataset, 12, environment)) == calm
        assert min(proxy.counters[kind] for kind in ("slow_down", "reset", "stall")) >= 1


def test_reads_go_on_when_a_killed_server_is_back(small_dataset, real_server, real_bucket):
    if real_server.ceph is None:
        pytest.skip("the server is not ours to kill")
    for path in sorted(Path(small_dataset).rglob("*")):
        if path.is_file():
            write_bytes(join(real_bucket, str(path.relative_to(small_dataset))), path.read_bytes())
    calm, remote = Dataset.open(small_dataset), Dataset.open(real_bucket)
    rows = [*range(len(calm))] * 40
    tiles = remote.reader.read_ahead(remote.locations(rows))
    expected = [calm.read_tile(row) for row in range(len(calm))]

    def back():
        time.sleep(3)
        real_server.ceph.start_gateway()

    restart = threading.Thread(target=back)
    started = time.monotonic()
    for number, (row, tile) in enumerate(zip(rows, tiles, strict=True)):
        for name, pixels in expected[row].items():
            np.testing.assert_array_equal(tile[name], pixels)
        if number == 20:
            real_server.ceph.kill_gateway()
            started = time.monotonic()
            restart.start()
    restart.join()
    # It did wait: more tiles were wanted than could have been on their way.
    assert time.monotonic() - started > 3


def test_a_writer_killed_during_an_upload_leaves_nothing_visible(
    real_server, real_bucket, tmp_path
):
    uri = join(real_bucket, "folder", "object")
    with real_server.behind() as (environment, proxy):
        program = (
            "import os, sys\nfrom terrafm.storage import write_bytes\n"
            "print('ready', flush=True)\nwrite_bytes(sys.argv[1], os.urandom(400 << 20))"
        )
        writer = subprocess.Popen(
            [sys.executable, "-c", program, uri],
            env=clean_environment() | environment, stdout=subprocess.PIPE,
        )  # fmt: skip
        writer.stdout.readline()
        end = time.monotonic() + 60
        while proxy.counters["requests"] < 3 and time.monotonic() < end:
            time.sleep(0.005)
        assert writer.poll() is None
        writer.kill()
        writer.wait()
    assert list_names(join(real_bucket, "folder")) == []


@pytest.mark.parametrize("place", ["local", "s3"])
def test_ingest_killed_five_times_gives_the_same_bytes(
    place, archive, calm, real_server, real_bucket, tmp_path
):
    output = str(tmp_path / "killed") if place == "local" else join(real_bucket, "killed")
    moments = random.Random(f"kill {place}")
    for _ in range(5):
        job = start_ingest(archive, output, real_server.environment)
        entries = len(list_names(join(output, "entries")))
        deadline = time.monotonic() + 60
        # From the moment that it writes at all: a kill before that proves nothing.
        while (
            job.poll() is None
            and len(list_names(join(output, "entries"))) <= entries
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.4))
        kill_session(job)
        forget_clients()
    ingest(archive, output, real_server.environment)
    assert content(output) == calm
    left = [name for name in list_names(join(output, "shards")) if not name.startswith("part-")]
    assert left == []


def one_line(done):
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_wrong_credentials_end_with_one_line(archive, real_server, remote_dataset, real_bucket):
    wrong = real_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    done = ingest(archive, join(real_bucket, "other"), wrong, check=2)
    assert "check credentials" in one_line(done)
    done = terrafm("inspect", remote_dataset, environment=wrong | PATIENCE, check=2)
    assert "check credentials" in one_line(done)


def test_a_missing_bucket_ends_with_one_line(archive, real_server):
    done = ingest(archive, "s3://terrafm-not-there/x", real_server.environment, check=2)
    assert "terrafm-not-there" in one_line(done)
    uri = "s3://terrafm-not-there/x"
    done = terrafm("inspect", uri, environment=real_server.environment | PATIENCE, check=2)
    assert "terrafm-not-there" in one_line(done)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_with_one_line_and_no_dataset(archive, small_disk):
    done = ingest(archive, small_disk / "dataset", {}, check=2)
    assert "no room left" in one_line(done)
    names = [path.name for path in small_disk.rglob("*") if path.is_file()]
    assert "manifest.json" not in names
    entries = {Path(name).stem for name in names if name.endswith(".arrow")}
    shards = {Path(name).stem for name in names if name.endswith(".parquet")}
    assert entries <= shards
    assert not [name for name in names if name.startswith(".")]

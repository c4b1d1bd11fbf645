"""The stream from a real S3 server at 20 ms of added latency against the stream from local files.

    python benchmarks/s3_stream.py [--json]

The server is the one of the tests (tests/s3/start_ceph.py, a Ceph gateway on loopback; install
it with --install), or the one that TERRAFM_TEST_S3_ENDPOINT, _KEY, _SECRET and _BUCKET name.
tests/s3/fault_proxy.py before it delays every request and every new connection.

- Cold: an empty cell cache with room for all. No tile comes twice in a run: its cells come from
  the store, and are written to the cache as far as the stream leaves time to; the share that was
  is printed beside. Bar: 0.8 of local.
- Bare: no cache, the default. No bar.
- Warm: all cells from a full cache. Bar: 0.95 of local.
- Small: room for a quarter of the tiles, which is full and stays as it is. No bar.

A store is a machine of its own: so the server and the proxy are bound to one processor of this
machine and the stream, local runs as well, to the others, with a data worker for each. What they
share is memory bandwidth and the disk. Virtual machines hand unused memory back to their host, and
pay for it page by page when they need it again: so the page cache is filled before each run, with
a file that takes no place on the disk. Each run is a process tree of its own, 6 s of warm-up, 16 s
measured. The dataset is --tiles tiles in --copies places each, hard links locally; warm and small
read one place of each, as often as they come.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import s3fs
from common import ROOT, Figure, alternate, median_ratio, note, parse, parser, report, run_child
from harness.tiles import prepare, repeat
from harness.workload import Workload

from terrafm.data.shards.cell_cache import CellCache
from terrafm.data.shards.dataset import Dataset

COLD_BAR, WARM_BAR = 0.8, 0.95
LATENCY_SECONDS = 0.02
_SMALL_SHARE = 0.25
_SCRIPTS = ROOT / "tests" / "s3"
Environment = dict[str, str]


@contextmanager
def server(folder: Path) -> Iterator[tuple[Environment, str]]:
    """Environment of a server's clients, and a bucket."""
    given = {
        name: os.environ.get(f"TERRAFM_TEST_S3_{name}", "")
        for name in ("ENDPOINT", "KEY", "SECRET", "BUCKET")
    }
    if given["ENDPOINT"]:
        yield (
            {
                "AWS_ENDPOINT_URL": given["ENDPOINT"],
                "AWS_ACCESS_KEY_ID": given["KEY"],
                "AWS_SECRET_ACCESS_KEY": given["SECRET"],
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            given["BUCKET"],
        )
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = [sys.executable, str(_SCRIPTS / "start_ceph.py"), str(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    started = subprocess.run([*script, str(port)], capture_output=True, text=True, check=False)
    try:
        if started.returncode:
            raise SystemExit(f"no S3 server: {(started.stderr or started.stdout).strip()}")
        lines = [line.partition("=") for line in started.stdout.splitlines() if "=" in line]
        yield {name: value for name, _, value in lines}, "terrafm-benchmark"
    finally:
        subprocess.run([*script, "--stop"], capture_output=True, check=False)


@contextmanager
def delayed(environment: Environment) -> Iterator[Environment]:
    """The same server behind the proxy."""
    target = environment["AWS_ENDPOINT_URL"].rpartition("://")[2]
    command = [sys.executable, str(_SCRIPTS / "fault_proxy.py"), target]
    with subprocess.Popen(
        [*command, "--latency", str(LATENCY_SECONDS)], stdout=subprocess.PIPE, text=True
    ) as proxy:
        try:
            assert proxy.stdout is not None
            yield environment | {"AWS_ENDPOINT_URL": proxy.stdout.readline().strip()}
        finally:
            proxy.terminate()
            note(f"the proxy counted {(proxy.stdout.read() if proxy.stdout else '').strip()}")


def divide_processors() -> tuple[set[int], set[int]]:
    """Processors for the stream, and the one for the server."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise SystemExit("the server needs a processor beside the stream's: two at least")
    return set(processors[:-1]), {processors[-1]}


def upload(dataset: str, environment: Environment, bucket: str, name: str) -> str:
    """Copies the dataset to the server; returns its URI there."""
    store = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
    )
    if not store.exists(bucket):
        store.mkdir(bucket)
    target = f"{bucket}/{name}"
    if store.exists(target):
        store.rm(target, recursive=True)
    store.put(f"{dataset}/", f"{target}/", recursive=True)
    return f"s3://{target}"


def fill_page_cache(hole: Path) -> None:
    """Reads as much as this machine has memory, all zeros."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with hole.open("ab") as file:
        file.truncate(size)
    with hole.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def measure(
    local: Workload,
    once: str,
    often: str,
    few: Dataset,
    environment: Environment,
    caches: Path,
    rounds: int,
) -> list[Figure]:
    """The ratios, and the rates behind them.

    Args:
        local: the stream from local files.
        once: URI of a remote dataset of more tiles than a run takes.
        often: URI of a remote dataset that a run takes many times.
        few: the same dataset on the disk.
        environment: of the store's clients.
        caches: folder for caches.
        rounds: of alternating runs.
    """
    shutil.rmtree(caches, ignore_errors=True)

    def cached(name: str, uri: str, limit: float) -> Workload:
        config = {"cache_dir": str(caches / name), "cache_bytes": int(limit)}
        return replace(local, uri=uri, config=config)

    works = {
        "local": local,
        "bare": replace(local, uri=once),
        "cold": cached("cold", once, 1e12),
        "warm": cached("warm", often, 1e12),
        "small": cached("small", often, _SMALL_SHARE * few.bytes),
    }

    shares = []

    def rate(work: Workload, name: str) -> float:
        shutil.rmtree(caches / "cold", ignore_errors=True)
        fill_page_cache(caches.parent / "hole")
        result = run_child("contestant.py", asdict(work), environment=environment)
        if name == "cold":
            numbers = CellCache(caches / name, 0).numbers()
            shares.append(numbers.kept / (numbers.kept + numbers.passed_over))
            note(f"{numbers.kept / 1e9:.2f} GB written, {numbers.passed_over / 1e9:.2f} GB not")
        return float(result["rate"])

    note("filling the caches")
    for name in ("warm", "small"):
        filling = replace(works[name], name="fill_cache")
        run_child("contestant.py", asdict(filling), environment=environment)
    results = alternate({k: partial(rate, work, k) for k, work in works.items()}, rounds)
    shutil.rmtree(caches, ignore_errors=True)
    latency = f"{1000 * LATENCY_SECONDS:g} ms"
    return (
        [
            Figure(
                f"stream from S3 at {latency} / local, cache {name}",
                median_ratio(results, name, "local"),
                bar,
                "higher",
                "x",
            )
            for name, bar in (
                ("cold", COLD_BAR),
                ("warm", WARM_BAR),
                ("small", None),
                ("bare", None),
            )
        ]
        + [
            Figure("share of cells written, cold", statistics.median(shares), None, "higher", "x"),
        ]
        + [
            Figure(
                f"tiles per second, {name}", statistics.median(values), None, "higher", "tiles/s"
            )
            for name, values in results.items()
        ]
    )


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument("--copies", type=int, default=24, help="of each tile (%(default)s)")
    options.add_argument("--seconds", type=float, default=16, help="of a run (%(default)s)")
    options.add_argument("--warm-up", type=float, default=6, help="seconds (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.copies, arguments.seconds, arguments.warm_up = 4, 2, 2, 1
    ours, theirs = divide_processors()
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    spread = repeat(made, arguments.work / "spread", arguments.copies, own_shards=True)
    local = Workload(
        "stream",
        spread,
        seconds=arguments.seconds,
        warm_up=arguments.warm_up,
        workers=len(ours),
    )
    # Children inherit it.
    os.sched_setaffinity(0, theirs)
    with server(arguments.work / "ceph") as (direct, bucket):
        often = upload(made.dataset, direct, bucket, "often")
        once = upload(spread, direct, bucket, "once")
        with delayed(direct) as environment:
            os.sched_setaffinity(0, ours)
            caches = arguments.work / "cell-cache"
            few = Dataset.open(made.dataset)
            figures = measure(local, once, often, few, environment, caches, arguments.rounds)
    report(figures, arguments, made.data)


if __name__ == "__main__":
    main()

"""The stream from a real S3 server at 20 ms of added latency against the stream from local files.

    python benchmarks/s3_stream.py [--json]

The server is the one of the tests (tests/s3/start_ceph.py, a Ceph gateway on loopback; install
it with --install), or the one that TERRAFM_TEST_S3_ENDPOINT, _KEY, _SECRET and _BUCKET name.
tests/s3/fault_proxy.py before it delays every request and every new connection.

- Cold: the cell cache on, with room for a quarter of the tiles: cells are written to it and go
  before they are asked for again (about 3 reads in 100 still find theirs). Bar: 0.8 of local.
- Warm: room for all, filled by an earlier run. Bar: 0.95 of local.

A store is a machine of its own: so the server and the proxy are bound to one processor of this
machine and the stream, local runs as well, to the others, with a data worker for each. What they
share is memory bandwidth. Each run is a process tree of its own, 8 s of warm-up, 20 s measured.
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
from pathlib import Path

import s3fs
from common import ROOT, Figure, alternate, median_ratio, note, parse, parser, report, run_child
from harness.tiles import prepare
from harness.workload import Workload

COLD_BAR, WARM_BAR = 0.8, 0.95
LATENCY_SECONDS = 0.02
_COLD_SHARE = 0.25
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


def upload(dataset: str, environment: Environment, bucket: str) -> str:
    """Copies the dataset to the server; returns its URI there."""
    store = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
    )
    if not store.exists(bucket):
        store.mkdir(bucket)
    target = f"{bucket}/tiles"
    if store.exists(target):
        store.rm(target, recursive=True)
    store.put(f"{dataset}/", f"{target}/", recursive=True)
    return f"s3://{target}"


def measure(work: Workload, uri: str, environment: Environment, rounds: int) -> list[Figure]:
    """Both ratios, and the rates behind them."""
    caches = Path(work.formats)
    shutil.rmtree(caches, ignore_errors=True)
    size = work.dataset.bytes
    cold_config = {"cache_dir": str(caches / "cold"), "cache_bytes": int(_COLD_SHARE * size)}
    warm_config = {"cache_dir": str(caches / "warm"), "cache_bytes": 12 * size}
    cold = replace(work, uri=uri, config=cold_config)
    warm = replace(work, uri=uri, config=warm_config)

    def once(one: Workload) -> float:
        return float(run_child("contestant.py", asdict(one), environment=environment)["rate"])

    # Two epochs: cells of modalities that the first did not draw come with the second.
    note("filling the warm cache")
    once(replace(warm, tiles=2 * len(work.dataset), warm_up=0.0))
    runs = {"local": work, "cold": cold, "warm": warm}
    results = alternate({k: lambda one=one: once(one) for k, one in runs.items()}, rounds)
    shutil.rmtree(caches, ignore_errors=True)
    latency = f"{1000 * LATENCY_SECONDS:g} ms"
    return [
        Figure(
            f"stream from S3 at {latency} / local, cache {name}",
            median_ratio(results, name, "local"),
            bar,
            "higher",
            "x",
        )
        for name, bar in (("cold", COLD_BAR), ("warm", WARM_BAR))
    ] + [
        Figure(f"tiles per second, {name}", statistics.median(values), None, "higher", "tiles/s")
        for name, values in results.items()
    ]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument("--seconds", type=float, default=20, help="of a run (%(default)s)")
    options.add_argument("--warm-up", type=float, default=8, help="seconds (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.seconds, arguments.warm_up = 4, 2, 1
    ours, theirs = divide_processors()
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    work = Workload(
        "stream",
        made.dataset,
        formats=str(arguments.work / "cell-cache"),
        seconds=arguments.seconds,
        warm_up=arguments.warm_up,
        workers=len(ours),
    )
    # Children inherit it.
    os.sched_setaffinity(0, theirs)
    with server(arguments.work / "ceph") as (direct, bucket):
        uri = upload(made.dataset, direct, bucket)
        with delayed(direct) as environment:
            os.sched_setaffinity(0, ours)
            figures = measure(work, uri, environment, arguments.rounds)
    report(figures, arguments, made.data)


if __name__ == "__main__":
    main()

"""Runs an ingest, a stream or an embedding and prints the memory of its processes over time.

    python benchmarks/harness/memory_of.py '{"what": "ingest", ...}'

Memory is the resident pages of the driver and all of Ray's workers that no other process shares:
pages of the object store are shared, and so left out.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from harness.workload import Workload

_EVERY_SECONDS = 0.2
# Ray's own services carry the prefix of its workers.
_SERVICES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Sampler:
    """Sums memory in a thread until stopped."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        driver = psutil.Process()
        while not self._stop.wait(_EVERY_SECONDS):
            total = _private(driver)
            for child in driver.children(recursive=True):
                try:
                    title = (child.cmdline() or [""])[0]
                    if title.startswith("ray::") and title not in _SERVICES:
                        total += _private(child)
                except psutil.NoSuchProcess:
                    continue
            self.samples.append((time.perf_counter(), total))


def _private(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def ingest(request: dict[str, Any]) -> Callable[[], None]:
    """An ingest of a Major-TOM archive."""
    from terrafm.config import IngestConfig
    from terrafm.data.ingest.job import ingest as run

    config = IngestConfig(workers=request["workers"], tiles_per_shard=request["tiles_per_shard"])

    def work() -> None:
        run(
            "major-tom",
            request["archive"],
            request["output"],
            worldcover=request["worldcover"],
            tile_size=request["tile_size"],
            config=config,
        )

    return work


def stream(request: dict[str, Any]) -> Callable[[], None]:
    """The stream, until it has given a number of samples."""
    from harness.ours import stream as run

    work = Workload(**request["workload"])
    return lambda: run(work) and None


def embed(request: dict[str, Any]) -> Callable[[], None]:
    """An embedding of a dataset's radar."""
    from terrafm.embed.job import embed as run
    from terrafm.embed.request import EmbedOptions

    options = EmbedOptions(modalities=["s1"], size=64, workers=2)
    return lambda: run(request["weights"], request["data"], request["output"], options) and None


def main() -> None:
    """Prints {"seconds": [...], "bytes": [...]}, from the start of the work on."""
    request = json.loads(sys.argv[1])
    work = {"ingest": ingest, "stream": stream, "embed": embed}[request["what"]](request)
    sampler = Sampler()
    start = time.perf_counter()
    work()
    sampler.stop()
    print(
        json.dumps(
            {
                "seconds": [round(moment - start, 3) for moment, _ in sampler.samples],
                "bytes": [size for _, size in sampler.samples],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()

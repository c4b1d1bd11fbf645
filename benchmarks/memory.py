"""Memory of ingest and stream over ten times as many tiles.

    python benchmarks/memory.py [--json]

Ingest of a Major-TOM archive of 16 and of 160 cells of one tile (distinct rows of its Parquet
files; the pixels repeat), and the stream over a dataset of 1,024 and of 10,240 tiles, once each
(every tile is a row of the index of its own; the pixels repeat). Memory is the resident, unshared
pages of the driver and all Ray workers, so the object store is apart; sampled five times a
second, the 95th percentile of the second half of a run. Few and small crops let the stream pass
many tiles. Bar: at most 1.10 x.
"""

import shutil
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, alternate, median_ratio, parse, parser, report, run_child
from harness.archive import write_archive
from harness.tiles import TestTiles, prepare, repeat
from harness.workload import Workload

BAR = 1.10
TIMES = 10
_SMALL_CROPS = {"local_crops": 2, "global_size": 96}


def plateau(request: dict[str, Any]) -> float:
    """Gigabytes that a run held once it was warm."""
    shutil.rmtree(request.get("output", ""), ignore_errors=True)
    answer = run_child("memory_of.py", request)
    sizes = answer["bytes"][len(answer["bytes"]) // 2 :]
    if not sizes:
        raise SystemExit("the run ended before its memory was sampled: take more cells or tiles")
    return float(np.percentile(sizes, 95)) / 1e9


def ingest_request(tiles: TestTiles, work: Path, cells: int) -> dict[str, Any]:
    """An ingest of so many cells; writes the archive first."""
    archive = work / f"archive-{tiles.data.split()[0]}-{cells}"
    write_archive(tiles, archive, cells)
    return {
        "what": "ingest",
        "archive": str(archive),
        "output": str(work / f"ingested-{cells}"),
        "worldcover": str(archive / "worldcover"),
        "tile_size": 534,
        "workers": 2,
        "tiles_per_shard": 2,
    }


def stream_request(tiles: TestTiles, work: Path, samples: int, warm_up: float) -> dict[str, Any]:
    """A stream over a dataset of so many tiles."""
    uri = repeat(tiles, work / f"repeated-{samples}", max(1, samples // tiles.count))
    workload = Workload("stream", uri, tiles=samples, warm_up=warm_up, config=_SMALL_CROPS)
    return {"what": "stream", "workload": asdict(workload)}


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--cells", type=int, default=16, help="of the small ingest (%(default)s)")
    options.add_argument("--samples", type=int, default=1024, help="small stream (%(default)s)")
    options.add_argument("--warm-up", type=float, default=5, help="of the stream, s (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.cells, arguments.samples, arguments.warm_up = 2, 64, 1.0
    tiles = prepare(arguments.work, arguments.real, 4 if arguments.quick else 16)
    work, cells, samples = arguments.work, arguments.cells, arguments.samples
    runs = {}
    for label, times in (("1x", 1), ("10x", TIMES)):
        runs[f"ingest {label}"] = ingest_request(tiles, work, cells * times)
        runs[f"stream {label}"] = stream_request(tiles, work, samples * times, arguments.warm_up)
    results = alternate({k: partial(plateau, v) for k, v in runs.items()}, arguments.rounds)
    figures = [
        Figure(
            f"memory of {what} over {TIMES} x more tiles",
            median_ratio(results, f"{what} 10x", f"{what} 1x"),
            BAR,
            "lower",
            "x",
        )
        for what in ("ingest", "stream")
    ]
    figures += [
        Figure(f"memory, {name}", statistics.median(values), None, "lower", "GB")
        for name, values in results.items()
    ]
    report(figures, arguments, tiles.data)


if __name__ == "__main__":
    main()

"""The stream against the loaders of other libraries: same tiles, two workers each.

    python benchmarks/peers.py --peers-python /tmp/peers/bin/python [--json]

- torch DataLoader on GeoTIFFs in Major-TOM's style, the same crops: bar 2.3 x.
- A 10 m float32 stack of all bands, as TorchGeo makes it, cropped by torch with antialiasing:
  bar 6 x.
- The best of torch DataLoader on our shards, LitData, WebDataset and MosaicML Streaming, each on
  the same cells in its own format, with the same decoding and crops: bar 1.0 x.

The last three live in an environment of their own (see requirements-peers.txt), whose Python
--peers-python names; without it they are left out, and the figure's name says who was there.
All peers run with glibc's malloc set as the stream's workers set it. Each run is a process tree
of its own, 8 s of warm-up, 20 s measured.
"""

import statistics
from dataclasses import asdict, replace
from functools import partial

from common import Figure, alternate, median_ratio, note, parse, parser, report, run_child
from harness.tiles import prepare
from harness.workload import Workload

GEOTIFF_BAR, FLOAT_STACK_BAR, BEST_BAR = 2.3, 6.0, 1.0
OTHERS = ("litdata", "webdataset", "mosaicml")
# What `terrafm.data.samples.builder` sets in the stream's workers, as glibc reads it at a start.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def measure(work: Workload, rounds: int, peers_python: str | None) -> list[Figure]:
    """The three ratios, and the rates behind them."""

    def once(name: str) -> float:
        options = {"environment": {} if name == "stream" else _MALLOC}
        if name in OTHERS and peers_python:
            options["python"] = peers_python
        return float(
            run_child("contestant.py", asdict(replace(work, name=name)), **options)["rate"]
        )

    on_cells = ["torch_shards", *(OTHERS if peers_python else ())]
    # A first run of each writes its format; measured runs find it.
    for name in on_cells[1:]:
        note(f"{name} writes its format")
        options = asdict(replace(work, name=name, warm_up=0.0, seconds=0.1))
        run_child("contestant.py", options, python=peers_python or "")
    names = ["stream", "torch_geotiff", "torchgeo_like", *on_cells]
    results = alternate({name: partial(once, name) for name in names}, rounds)
    rates = {name: statistics.median(values) for name, values in results.items()}
    best = max(on_cells, key=lambda name: rates[name])
    figures = [
        Figure(f"stream / {what}", median_ratio(results, "stream", peer), bar, "higher", "x")
        for what, peer, bar in (
            ("torch DataLoader on GeoTIFFs", "torch_geotiff", GEOTIFF_BAR),
            ("TorchGeo-like 10 m float stack", "torchgeo_like", FLOAT_STACK_BAR),
            (f"best of {', '.join(on_cells)} ({best})", best, BEST_BAR),
        )
    ]
    return figures + [
        Figure(f"tiles per second, {name}", value, None, "higher", "tiles/s")
        for name, value in rates.items()
    ]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--peers-python", help="interpreter that has the other libraries")
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument("--seconds", type=float, default=20, help="of a run (%(default)s)")
    options.add_argument("--warm-up", type=float, default=8, help="seconds (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.seconds, arguments.warm_up = 4, 2, 1
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    work = Workload(
        name="",
        uri=made.dataset,
        geotiffs=str(made.geotiffs),
        formats=str(made.geotiffs.parent / "formats"),
        seconds=arguments.seconds,
        warm_up=arguments.warm_up,
    )
    report(measure(work, arguments.rounds, arguments.peers_python), arguments, made.data)


if __name__ == "__main__":
    main()

"""Crops cut by data workers against crops cut on the training device, per tile.

    python benchmarks/crops.py [--device cuda] [--json]

- Workers: `Cropper.crop` on one core, of tiles that are decoded already.
- Device: `TileBatch.to` of a micro-batch of 64 tiles (a GPU where there is one, else one thread
  of the processor), copy to it included.
- Bytes that a data worker sends to the trainer per tile, either way.

The default of `data.crop_on` rests on the first two: on a processor the faster of them, since
both are paid with the same cores. Where a GPU trains, its share of a step has to be weighed
against cores per GPU. Needs no Ray.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from common import Figure, alternate, parse, parser, report
from harness.tiles import prepare
from harness.workload import BATCH, Workload

from terrafm.data.samples.batch import SampleInfo, assemble
from terrafm.data.samples.builder import BatchRows
from terrafm.data.samples.device_crops import assemble_tiles


def measure(work: Workload, device: str, rows: int, rounds: int) -> list[Figure]:
    """Milliseconds and bytes per tile, both ways."""
    builder = work.builder
    instructions = builder.instructions(0, 1).slice(0, rows)
    cropper, views = builder.samples.cropper, builder.samples.views(instructions)
    tiles = work.dataset.reader.read(instructions)
    crops = np.empty(views.pixels, np.uint16)
    needed = cropper.needed(views)
    whole = np.concatenate(
        [
            tile[group.name].view(np.uint16).ravel()
            for tile, row in zip(tiles, needed, strict=True)
            for group, here in zip(cropper.groups, row, strict=True)
            if here
        ]
    )
    samples = SampleInfo(
        tile_id=instructions["tile_id"].to_pylist(),
        epoch=np.zeros(rows, np.int64),
        position=np.arange(rows),
        weight=torch.ones(rows),
    )
    fields = {"high_frequency": np.zeros(rows, bool), "samples": samples}

    def by_workers() -> None:
        for row, pixels in enumerate(tiles):
            cropper.crop(pixels, views, row, crops)

    def on_device() -> None:
        assemble_tiles(cropper, views, [BatchRows(rows, whole)], **fields).to(device)
        if device == "cuda":
            torch.cuda.synchronize()

    def gather() -> None:
        assemble(views, [BatchRows(rows, crops)], **fields).to(device)
        if device == "cuda":
            torch.cuda.synchronize()

    def milliseconds(run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start) / rows

    ways = {"workers": by_workers, "batch of crops": gather, "device": on_device}
    for run in ways.values():
        run()
    results = alternate(
        {name: lambda run=run: milliseconds(run) for name, run in ways.items()}, rounds
    )
    middle = {name: statistics.median(values) for name, values in results.items()}
    where = "GPU" if device == "cuda" else "one thread"
    return [
        Figure("crops by a data worker, one core", middle["workers"], None, "lower", "ms/tile"),
        Figure("their batch, copy included", middle["batch of crops"], None, "lower", "ms/tile"),
        Figure(f"crops on the device ({where})", middle["device"], None, "lower", "ms/tile"),
        Figure("device / workers", middle["device"] / middle["workers"], None, "lower", "x"),
        Figure("sent as crops", crops.nbytes / rows / 1e6, None, "lower", "MB/tile"),
        Figure("sent as tiles", whole.nbytes / rows / 1e6, None, "lower", "MB/tile"),
    ]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="that crops (%(default)s)",
    )
    arguments = parse(options)
    torch.set_num_threads(1)
    rows = 4 if arguments.quick else BATCH
    made = prepare(arguments.work, arguments.real, 4 if arguments.quick else arguments.tiles)
    work = Workload("crops", made.dataset)
    report(measure(work, arguments.device, rows, arguments.rounds), arguments, made.data)


if __name__ == "__main__":
    main()

"""Memory of an embedding over ten times as many tiles.

    python benchmarks/embed_memory.py [--json]

`terrafm embed` of radar by terrafm_tiny at 64 pixels, two workers, over a dataset of 1,024 and of
10,240 tiles of 534 pixels, once each (every tile is a row of the index of its own; the pixels
repeat). Memory is the resident, unshared pages of the driver and all Ray workers, so the object
store is apart; sampled five times a second, the 95th percentile of the second half of a run. Bar:
at most 1.10 x.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Figure, alternate, median_ratio, parse, parser, report
from harness.tiles import TestTiles, prepare, repeat
from memory import BAR, TIMES, plateau

from terrafm.data.shards.dataset import Dataset
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors


def request(tiles: TestTiles, work: Path, count: int) -> dict[str, Any]:
    """An embedding of so many tiles; writes dataset and weights first."""
    uri = repeat(tiles, work / f"embedded-tiles-{count}", max(1, count // tiles.count))
    weights = str(work / "embed-tiny.safetensors")
    torch.manual_seed(0)
    contract = WeightsContract.build("terrafm_tiny", Dataset.open(uri).statistics)
    save_safetensors(weights, build_encoder("terrafm_tiny").state_dict(), contract)
    return {
        "what": "embed",
        "weights": weights,
        "data": uri,
        "output": str(work / f"embedded-{count}"),
    }


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=1024, help="of the small run (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles = 64
    tiles = prepare(arguments.work, arguments.real, 4 if arguments.quick else 16)
    runs = {
        label: request(tiles, arguments.work, arguments.tiles * times)
        for label, times in (("1x", 1), ("10x", TIMES))
    }
    results = alternate({k: partial(plateau, v) for k, v in runs.items()}, arguments.rounds)
    figures = [
        Figure(
            f"memory of embed over {TIMES} x more tiles",
            median_ratio(results, "10x", "1x"),
            BAR,
            "lower",
            "x",
        ),
        *(
            Figure(f"memory, embed {name}", statistics.median(values), None, "lower", "GB")
            for name, values in results.items()
        ),
    ]
    report(figures, arguments, tiles.data)


if __name__ == "__main__":
    main()

"""Runs one contestant in this process and prints its result as JSON.

    python benchmarks/harness/contestant.py '{"name": "stream", "uri": ...}'

The argument is a `Workload`.
"""

import importlib
import json
import multiprocessing
import os
import sys
from functools import partial

from harness.workload import Workload

# Name -> module and function; imported late, since the libraries of one are missing to another.
CONTESTANTS = {
    "stream": ("harness.ours", "stream", {}),
    "unordered": ("harness.ours", "stream", {"ordered": False}),
    "plain": ("harness.ours", "plain", {}),
    "tile_seconds": ("harness.ours", "tile_seconds", {}),
    "fill_cache": ("harness.ours", "fill_cache", {}),
    "torch_shards": ("harness.torch_loaders", "shards", {}),
    "torch_geotiff": ("harness.torch_loaders", "geotiffs", {}),
    "torchgeo_like": ("harness.torch_loaders", "float_stack", {}),
    "litdata": ("harness.peers", "litdata", {}),
    "webdataset": ("harness.peers", "webdataset", {}),
    "mosaicml": ("harness.peers", "mosaicml", {}),
}


def main() -> None:
    """Prints the contestant's result."""
    work = Workload(**json.loads(sys.argv[1]))
    module, function, options = CONTESTANTS[work.name]
    run = partial(getattr(importlib.import_module(module), function), **options)
    print(json.dumps(run(work)), flush=True)
    # At once: loaders' workers would go on for a while, into the next contestant's run.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    main()

"""Makes one plan and its first epoch in this process: seconds, and the process's peak memory."""

import json
import resource
import sys
import time

import numpy as np

from terrafm.data.samples.plan import Plan

# As uneven as an archive's: from open sea and trees down to mangroves and snow.
_SHARES = (0.34, 0.22, 0.15, 0.11, 0.07, 0.05, 0.03, 0.015, 0.01, 0.004, 0.001)
_CODES = (80, 10, 30, 60, 40, 20, 70, 100, 90, 50, 95)


def main() -> None:
    """Prints {"seconds": ..., "gigabytes": ...}."""
    request = json.loads(sys.argv[1])
    tiles = request["tiles"]
    bounds = (np.cumsum(_SHARES) * tiles).astype(np.int64)
    land_cover = np.empty(tiles, np.int32)
    for code, first, last in zip(_CODES, [0, *bounds[:-1]], bounds, strict=True):
        land_cover[first:last] = code
    land_cover[bounds[-1] :] = _CODES[-1]
    np.random.default_rng(0).shuffle(land_cover)
    start = time.perf_counter()
    plan = Plan(land_cover, seed=0, exponent=request["exponent"])
    epoch = plan.epoch(0)
    seconds = time.perf_counter() - start
    assert len(epoch) == tiles
    # ru_maxrss: kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "gigabytes": peak}))


if __name__ == "__main__":
    main()

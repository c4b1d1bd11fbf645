"""Data wait of a training step in a simulation of 64 workers, from rates measured here.

    python benchmarks/simulation.py [--json] [--nodes 8] [--cores-per-node 192] [...]

Measured here: the time of read, decode and crop of single tiles on one core (its distribution,
not only its mean), the stream's rate as a share of plain processes' (Ray Data's cost), and the
bytes that a tile takes from the store. Assumed, each an option: nodes of 8 GPUs, their cores,
their network rate, and 650 tiles/s per GPU (a ViT-B at 35 % of an H200). The assumption that limits
the answer: every core of a full node is as fast as one of this machine, memory bandwidth and the
object store included; besides, the store gives every node its whole network rate, and nothing
fails.

Each worker has its share of its node's cores. A task makes a block of rows in the plan's order:
the block's bytes first pass the worker's share of the node's network, then one core works for the
sum of its tiles' times. As in the stream, tasks start while the blocks that are not yet consumed
are no more than two per core and two. A step begins when every worker has its rows and ends,
for all at once, a step's time later; what it began later than the previous one ended is data wait.
Two cases: every tile comes from the store, and every tile lies in a local cache. The second also
finds the fewest cores at which less than a hundredth of the time is waiting. Checked against the
closed form: with far too few cores the throughput must be theirs.
"""

import argparse
import heapq
import math
import statistics
from collections import deque
from dataclasses import asdict, dataclass, replace

import numpy as np
from common import Figure, alternate, median_ratio, note, parse, parser, report, run_child
from harness.tiles import prepare
from harness.workload import Workload
from numpy.typing import NDArray

_WARM_STEPS = 0.2
_VANISHED = 0.01


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        workers: training workers, one per GPU.
        cores: data cores of each worker.
        batch: samples of a worker in one step.
        step: seconds of one step's computation.
        block: rows of one task.
        network: bytes/s of each worker.
        tile_bytes: that a tile takes from the store.
        overhead: core time of the stream by that of plain processes.
    """

    workers: int
    cores: int
    batch: int
    step: float
    block: int
    network: float
    tile_bytes: float
    overhead: float


class _Worker:
    """The blocks of one worker: when each is ready."""

    def __init__(self, cluster: Cluster, tiles: NDArray[np.float64], seed: int) -> None:
        self._cluster = cluster
        self._tiles = tiles
        self._generator = np.random.default_rng(seed)
        self._cores = [0.0] * cluster.cores
        self._network = 0.0
        self._waiting: deque[float] = deque()
        self._rows = 0
        self._start(0.0)

    def ready(self, now: float) -> float:
        """Moment from which the next step's rows are there; blocks come in the plan's order."""
        moment = now
        needed = self._cluster.batch
        rows = self._rows
        for block in self._waiting:
            if rows >= needed:
                break
            rows += self._cluster.block
            moment = max(moment, block)
        return moment

    def take(self, now: float) -> None:
        """Consumes a step's rows; tasks that this makes room for start."""
        self._rows -= self._cluster.batch
        while self._rows < 0:
            self._waiting.popleft()
            self._rows += self._cluster.block
        self._start(now)

    def _start(self, now: float) -> None:
        cluster = self._cluster
        limit = max(2 * cluster.cores + 2, -(-cluster.batch // cluster.block) + 1)
        while len(self._waiting) < limit:
            begin = max(now, heapq.heappop(self._cores))
            self._network = max(self._network, begin)
            self._network += cluster.block * cluster.tile_bytes / cluster.network
            work = self._generator.choice(self._tiles, cluster.block).sum() * cluster.overhead
            end = max(begin, self._network) + work
            heapq.heappush(self._cores, end)
            self._waiting.append(end)


def simulate(cluster: Cluster, tiles: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Wait of each step by its whole duration, the first fifth left out.

    Args:
        cluster: what is simulated.
        tiles: measured seconds of single tiles, drawn with replacement.
        steps: number of steps.
    """
    workers = [_Worker(cluster, tiles, seed) for seed in range(cluster.workers)]
    now = 0.0
    shares = []
    for _ in range(steps):
        begin = max(worker.ready(now) for worker in workers)
        for worker in workers:
            worker.take(begin)
        shares.append((begin - now) / (begin - now + cluster.step))
        now = begin + cluster.step
    return np.array(shares[int(_WARM_STEPS * steps) :])


def wait(shares: NDArray[np.float64]) -> float:
    """Share of all time that is waiting: steps weigh by their duration."""
    waited = shares / (1 - shares)
    return float(waited.mean() / (1 + waited.mean()))


def check(cluster: Cluster, tiles: NDArray[np.float64]) -> None:
    """A starved cluster runs at the rate of its cores, to within a twentieth."""
    starved = replace(cluster, workers=1, cores=1, network=1e15)
    demand = starved.batch / starved.step
    supply = 1 / (tiles.mean() * starved.overhead)
    if supply > 0.5 * demand:
        starved = replace(starved, step=0.1 * starved.batch / supply)
        demand = starved.batch / starved.step
    expected = 1 - supply / demand
    found = wait(simulate(starved, tiles, 2000))
    assert abs((1 - found) / (1 - expected) - 1) < 0.05, (found, expected)


def fewest_cores(cluster: Cluster, tiles: NDArray[np.float64], steps: int) -> int:
    """Fewest data cores per worker with less than a hundredth of waiting."""
    low, high = 0, 1
    while wait(simulate(replace(cluster, cores=high), tiles, steps)) >= _VANISHED:
        low, high = high, 2 * high
        if high > 4096:
            raise SystemExit("no number of cores feeds these GPUs: the times of tiles are too long")
    while high - low > 1:
        middle = (low + high) // 2
        vanished = wait(simulate(replace(cluster, cores=middle), tiles, steps)) < _VANISHED
        low, high = (low, middle) if vanished else (middle, high)
    return high


def measured(work: Workload, rounds: int) -> tuple[NDArray[np.float64], float, dict[str, float]]:
    """Seconds of single tiles, the stream's overhead, and the rates behind it."""
    single = run_child("contestant.py", asdict(replace(work, name="tile_seconds")))
    runs = {
        name: lambda name=name: float(
            run_child("contestant.py", asdict(replace(work, name=name)))["rate"]
        )
        for name in ("plain", "stream")
    }
    results = alternate(runs, rounds)
    overhead = median_ratio(results, "plain", "stream")
    rates = {name: statistics.median(values) for name, values in results.items()}
    return np.array(single["seconds"]), overhead, rates


def tile_bytes(work: Workload) -> float:
    """Mean bytes of a tile's cells that the drawn modalities need."""
    builder = work.builder
    rows = builder.instructions(0, 32)
    views = builder.samples.views(rows)
    needed = views.drawn.any(axis=1)
    total = 0
    for group in builder.samples.cropper.groups:
        here = needed[:, views.modalities.index(group.modality)]
        total += int(rows[f"{group.name}.length"].to_numpy()[here].sum())
    return total / rows.num_rows


def figures(work: Workload, arguments: argparse.Namespace) -> list[Figure]:
    """Measures, checks the simulation, simulates."""
    tiles, overhead, rates = measured(work, arguments.rounds)
    gpus = arguments.nodes * arguments.gpus_per_node
    cluster = Cluster(
        workers=gpus,
        cores=max(1, arguments.cores_per_node // arguments.gpus_per_node - 1),
        batch=arguments.global_batch // gpus,
        step=arguments.global_batch / gpus / arguments.gpu_tiles_per_second,
        block=work.data.rows_per_block,
        network=arguments.node_gigabit * 1e9 / 8 / arguments.gpus_per_node,
        tile_bytes=tile_bytes(work),
        overhead=max(1.0, overhead),
    )
    check(cluster, tiles)
    note(f"{cluster}, {len(tiles)} tile times")
    # Local caches that hold the tiles: the network is out of the way.
    warm = replace(cluster, network=math.inf)
    cores = fewest_cores(warm, tiles, arguments.steps)
    where = (
        f"{gpus} workers of {cluster.cores} data cores and {arguments.gpu_tiles_per_second:g} "
        "tiles/s each"
    )
    wanted = arguments.gpu_tiles_per_second * arguments.gpus_per_node * cluster.tile_bytes
    supply = cluster.cores / (tiles.mean() * cluster.overhead)
    line = cluster.network / cluster.tile_bytes
    found = []
    for source, one in (
        (f"from the store at {arguments.node_gigabit:g} Gbit/s a node", cluster),
        ("from warm local caches", warm),
    ):
        shares = simulate(one, tiles, arguments.steps)
        name = f"data wait, {where}, {source}"
        for part, value in (
            ("all time", wait(shares)),
            ("p50 of steps", float(np.median(shares))),
            ("p99 of steps", float(np.quantile(shares, 0.99))),
        ):
            found.append(Figure(f"{name}, {part}", value, None, "lower", "share"))
    return [
        *found,
        Figure("fewest data cores a GPU for less than 1 % wait", cores, None, "lower", "cores"),
        Figure("limit of a GPU's data cores", supply, None, "higher", "tiles/s"),
        Figure("limit of a GPU's share of the network", line, None, "higher", "tiles/s"),
        Figure("network that a node needs", wanted * 8 / 1e9, None, "lower", "Gbit/s"),
        Figure("measured: a tile on one core", 1e3 * tiles.mean(), None, "lower", "ms"),
        Figure("measured: plain / stream", overhead, None, "lower", "x"),
        Figure("measured: bytes of a tile", cluster.tile_bytes / 1e6, None, "lower", "MB"),
        *(
            Figure(f"measured: {name}", value, None, "higher", "tiles/s")
            for name, value in rates.items()
        ),
    ]


def main() -> None:
    """Measures, simulates and prints."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--nodes", type=int, default=8, help="(%(default)s)")
    options.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    options.add_argument(
        "--cores-per-node", type=int, default=192, help="one a GPU is the trainer's (%(default)s)"
    )
    options.add_argument("--node-gigabit", type=float, default=100, help="network (%(default)s)")
    options.add_argument("--gpu-tiles-per-second", type=float, default=650, help="(%(default)s)")
    options.add_argument("--global-batch", type=int, default=1024, help="(%(default)s)")
    options.add_argument("--steps", type=int, default=2000, help="simulated (%(default)s)")
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument("--seconds", type=float, default=20, help="of a run (%(default)s)")
    options.add_argument("--warm-up", type=float, default=8, help="seconds (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.seconds, arguments.warm_up, arguments.steps = 4, 2, 1, 200
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    work = Workload(
        "", made.dataset, seconds=arguments.seconds, warm_up=arguments.warm_up, workers=2
    )
    report(figures(work, arguments), arguments, made.data)


if __name__ == "__main__":
    main()

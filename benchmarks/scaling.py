"""Tiles/s of 1 to 512 GPUs by ZeRO stage, derived from step, stream and network figures.

    python benchmarks/scaling.py [--json] [--node-gigabit 3200] [--gpu-tiles-per-second 650] [...]

Nothing is measured here: the arithmetic of docs/scaling.md, whose tables this prints. A step
takes its computation, and of its communication what the backward pass does not hide: gradients
are reduced, bucket by bucket, while it goes on (`overlap_comm`), but for the last bucket; and a
node's network must carry both the gradients and the tiles. Counted: parameters of student and
head, float32 bytes that a node sends, bytes of tiles that it takes from the store. Not counted:
latencies, the links inside a node, stragglers, checkpoints, the store's own limits.
"""

import argparse
import math
from dataclasses import dataclass, replace

import torch
from common import Figure, parse, parser, report

from terrafm.config import load_config
from terrafm.train.metrics.flops import sample_flops
from terrafm.train.step.distillation import Network
from terrafm.train.step.optimizer import reduce_bucket

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_FLOAT = 4


@dataclass(frozen=True)
class Assumptions:
    """What the derivation starts from.

    Attributes:
        parameters: of student and head together.
        batch: samples of a GPU in a step, one micro-batch.
        tiles_per_second: of one GPU's computation alone.
        gpus_per_node: GPUs that share a network card.
        node_bytes: bytes/s of a node's network, each way.
        tile_bytes: that a tile takes from the store.
        bucket: elements of gradients that are reduced together.
        backward: share of the computation that the backward pass is; 0 overlaps nothing.
    """

    parameters: int
    batch: int
    tiles_per_second: float
    gpus_per_node: int
    node_bytes: float
    tile_bytes: float
    bucket: int = 0
    backward: float = 0.0

    @property
    def computation(self) -> float:
        """Seconds of a step's computation."""
        return self.batch / self.tiles_per_second


@dataclass(frozen=True)
class Row:
    """One number of GPUs.

    Attributes:
        gpus: how many.
        ideal: tiles/s without communication.
        replicated: tiles/s at stages 1 and 2, tiles in local caches.
        sharded: tiles/s at stage 3, likewise.
        from_store: tiles/s at stages 1 and 2, every tile from the store.
        limit: what bounds the last: computation, gradients, tiles, or the two together.
    """

    gpus: int
    ideal: float
    replicated: float
    sharded: float
    from_store: float
    limit: str


def sent(assumed: Assumptions, gpus: int, stage: int) -> float:
    """Bytes that a node sends in a step; a ring over nodes, whose GPUs reduce among themselves.

    Stages 0 to 2: gradients are reduced and the result (0) or the updated parameters (1, 2) are
    gathered: twice (N - 1) / N of the parameters in float32. Stage 3: parameters are gathered for
    the forward pass, for the backward pass and for the teacher, and gradients are reduced: four
    times; the teacher's share is ours, plain ZeRO has three.
    """
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    passes = 4 if stage == 3 else 2
    return passes * (nodes - 1) / nodes * assumed.parameters * _FLOAT


def hidden(assumed: Assumptions, gpus: int) -> float:
    """Seconds of the gradients' reduction that pass during the backward pass.

    The last bucket is full only when the backward pass ends. Parameters are gathered after the
    optimizer, where nothing hides it; what stage 3 hides of its gathers is left out.
    """
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    early = max(0, assumed.parameters - assumed.bucket) * _FLOAT * (nodes - 1) / nodes
    return min(assumed.backward * assumed.computation, early / assumed.node_bytes)


def row(assumed: Assumptions, gpus: int) -> Row:
    """Throughput of one number of GPUs."""
    node_samples = assumed.batch * min(gpus, assumed.gpus_per_node)
    samples = assumed.batch * gpus

    def rate(stage: int, from_store: bool) -> tuple[float, str]:
        gradients = sent(assumed, gpus, stage) / assumed.node_bytes
        tiles = node_samples * assumed.tile_bytes / assumed.node_bytes if from_store else 0.0
        step = assumed.computation + gradients - hidden(assumed, gpus)
        # Tiles arrive while the GPUs compute; gradients and tiles share the wire.
        if gradients + tiles > step:
            return samples / (gradients + tiles), "gradients and tiles" if gradients else "tiles"
        limit = "computation" if gradients < assumed.computation else "gradients"
        return samples / step, limit

    stored, limit = rate(1, True)
    ideal = samples / assumed.computation
    return Row(gpus, ideal, rate(1, False)[0], rate(3, False)[0], stored, limit)


def table(assumed: Assumptions) -> str:
    """The table of docs/scaling.md for one network."""
    lines = [
        "| GPUs | computation alone | ZeRO 1, 2 | ZeRO 3 | ZeRO 1, 2, tiles from the store "
        "| bound by |",
        "|---|---|---|---|---|---|",
    ]
    for gpus in GPUS:
        r = row(assumed, gpus)
        shares = [
            f"{value:,.0f} ({value / r.ideal:.0%})"
            for value in (r.replicated, r.sharded, r.from_store)
        ]
        lines.append(f"| {gpus} | {r.ideal:,.0f} | {' | '.join(shares)} | {r.limit} |")
    return "\n".join(lines)


def parameters(model: str, prototypes: int) -> int:
    """Of student and head, counted without memory."""
    config = load_config(None, [f"model.name={model}", f"head.num_prototypes={prototypes}"])
    with torch.device("meta"):
        network = Network(config)
    return sum(p.numel() for p in network.parameters())


def assumptions(arguments: argparse.Namespace) -> Assumptions:
    """Of the command line."""
    whole = parameters(arguments.model, arguments.prototypes)
    model = [f"model.name={arguments.model}", f"head.num_prototypes={arguments.prototypes}"]
    flops = sample_flops(load_config(None, model))
    return Assumptions(
        parameters=whole,
        batch=arguments.batch,
        tiles_per_second=arguments.gpu_tiles_per_second,
        gpus_per_node=arguments.gpus_per_node,
        node_bytes=arguments.node_gigabit * 1e9 / 8,
        tile_bytes=arguments.tile_megabytes * 1e6,
        bucket=reduce_bucket(whole),
        backward=0.0 if arguments.no_overlap else flops.backward / flops.total,
    )


def networks(assumed: Assumptions) -> dict[int, Assumptions]:
    """The two networks of docs/scaling.md, in Gbit/s a node."""
    return {g: replace(assumed, node_bytes=g * 1e9 / 8) for g in (100, 3200)}


def figures(assumed: Assumptions) -> list[Figure]:
    """Every cell of the table as a figure."""
    found = [Figure("parameters", assumed.parameters / 1e6, None, "lower", "million")]
    for gpus in GPUS:
        r = row(assumed, gpus)
        for name, value in (
            ("ZeRO 1, 2", r.replicated),
            ("ZeRO 3", r.sharded),
            ("ZeRO 1, 2, tiles from the store", r.from_store),
        ):
            found.append(Figure(f"derived: {gpus} GPUs, {name}", value, None, "higher", "tiles/s"))
    return found


def options() -> argparse.ArgumentParser:
    """The command line, whose defaults are the page's assumptions."""
    found = parser(__doc__)
    found.add_argument("--model", default="terrafm_base", help="(%(default)s)")
    found.add_argument("--prototypes", type=int, default=65536, help="K (%(default)s)")
    found.add_argument("--batch", type=int, default=16, help="samples of a GPU (%(default)s)")
    found.add_argument(
        "--gpu-tiles-per-second", type=float, default=650, help="assumed (%(default)s)"
    )
    found.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    found.add_argument("--node-gigabit", type=float, default=100, help="network (%(default)s)")
    found.add_argument("--no-overlap", action="store_true", help="all communication at the end")
    found.add_argument("--tile-megabytes", type=float, default=5.1, help="(%(default)s)")
    return found


def main() -> None:
    """Prints the figures, or without --json the tables of the page."""
    arguments = parse(options())
    assumed = assumptions(arguments)
    if arguments.json:
        report(figures(assumed), arguments, "derived, not measured")
        return
    print(f"{assumed.parameters / 1e6:.1f} million parameters; {assumed}")
    print(table(assumed))


if __name__ == "__main__":
    main()

"""One rank of the tests of skipped steps: the real step, under every ZeRO stage.

Run as: nonfinite_ranks.py RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT_FILE DATASET
"""

import itertools
import os
import sys

import torch
from torch import distributed

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.step.zero import ZeroEngine
from terrafm.train.worker.faulty_steps import nonfinite_record, nonfinite_samples
from terrafm.train.worker.setup import TrainingSetup

STAGES = (0, 1, 2, 3)
KINDS = ("none", "loss", "gradient")
POISONED_ROW = 1
SETTINGS = [
    "train.steps=20",
    "train.global_batch=8",
    "train.micro_batch=2",
    "head.num_prototypes=32",
    "head.hidden_dim=32",
    "head.bottleneck_dim=16",
    "data.global_size=32",
    "data.local_size=16",
    "data.local_crops=1",
]


class Infinite(torch.autograd.Function):
    """The same loss, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def poison(criterion, kind):
    """Makes the next micro-batch's second loss NaN (its gradient stays finite), or its gradient."""
    whole = criterion.per_sample

    def poisoned(*inputs, **options):
        criterion.per_sample = whole
        loss, *entropies = whole(*inputs, **options)
        if kind == "gradient":
            return Infinite.apply(loss), *entropies
        constant = torch.zeros_like(loss)
        constant[POISONED_ROW] = float("nan")
        return loss + constant, *entropies

    criterion.per_sample = poisoned


def state_of(distillation):
    engine = distillation.engine.state()
    parts = {
        "student": engine.student,
        "optimizer": engine.optimizer,
        "teacher": dict(distillation.teacher.named_parameters()),
        "centers": distillation.criterion.state_dict(),
    }
    return {
        name: torch.cat([t.detach().flatten().clone() for _, t in sorted(part.items())])
        for name, part in parts.items()
    }


def train(setup, stage, kind, rank, world_size):
    """A good step, a poisoned one (or none), a good one."""
    layout = setup.layout(rank, world_size)
    options = {"micro_rows": layout.micro_rows, "n_micro": layout.n_micro}

    def engine(student):
        return ZeroEngine(
            student,
            setup.config.optim,
            stage=stage,
            precision="float32",
            persist_below=0,
            **options,
        )

    distillation = setup.distillation(engine, None, torch.device("cpu"))
    stream = make_batches(**setup.stream_options(layout, 0))
    steps = [list(itertools.islice(stream, layout.n_micro)) for _ in range(3)]
    outcomes, states, records = [], [], []
    for step, batches in enumerate(steps):
        if step == 1 and kind == "none":
            continue
        if step == 1 and rank == world_size - 1:
            poison(distillation.criterion, kind)
        settings = setup.schedules.at(10 + step)
        statistics = distillation.forward_backward(batches, settings)
        applied, norm = distillation.finish(settings)
        outcomes.append(applied)
        states.append(state_of(distillation))
        if not applied:
            gathered = [None] * world_size
            record = nonfinite_record(step, rank, norm, batches, statistics.losses)
            distributed.all_gather_object(gathered, record)
            records = nonfinite_samples(gathered)
    tiles = [None] * world_size
    distributed.all_gather_object(tiles, [t for batch in steps[1] for t in batch.samples.tile_id])
    return {"applied": outcomes, "states": states, "records": records, "tiles": tiles}


def main(rank, world_size, rendezvous, output, dataset):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    setup = TrainingSetup.open(load_config("demo", SETTINGS), dataset)
    results = {
        (stage, kind): train(setup, stage, kind, rank, world_size)
        for stage in STAGES
        for kind in KINDS
    }
    if rank == 0:
        torch.save(results, output)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6])
    os._exit(0)  # As in zero_ranks.py.

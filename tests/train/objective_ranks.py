"""One rank of the tests of objectives beyond the paper: the real step, under every ZeRO stage.

Run as: objective_ranks.py RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT_FILE DATASET
"""

import itertools
import os
import sys

import torch
from torch import distributed

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.worker.setup import TrainingSetup

STAGES = (0, 1, 2, 3)
STEPS = 3
SETTINGS = [
    f"train.steps={STEPS}",
    "train.global_batch=8",
    "train.micro_batch=4",
    "head.num_prototypes=32",
    "head.hidden_dim=32",
    "head.bottleneck_dim=16",
    "data.global_size=32",
    "data.local_size=16",
    "data.local_crops=1",
    "model.drop_path=0.1",
    "optim.base_lr=0.05",
]
BEYOND = [
    "loss.centering=sinkhorn",
    "loss.koleo_weight=0.1",
    "loss.masked_patch_weight=1",
    "optim.clip_by=parameter",
]


def run(dataset, overrides, rank=0, world_size=1, stage=None):
    """Means of each step over this rank's samples, and the student; without a stage, plain."""
    config = load_config("demo", [*SETTINGS, *overrides])
    setup = TrainingSetup.open(config, dataset)
    layout = setup.layout(rank, world_size)
    if stage is None:
        distillation = setup.plain_distillation()
    else:
        from terrafm.train.step.zero import ZeroEngine

        options = {"micro_rows": layout.micro_rows, "n_micro": layout.n_micro}

        def engine(student):
            return ZeroEngine(
                student, config.optim, stage=stage, precision="float32", persist_below=0, **options
            )

        distillation = setup.distillation(engine, None, torch.device("cpu"))
    stream = make_batches(**setup.stream_options(layout, 0))
    means = []
    for step in range(STEPS):
        settings = setup.schedules.at(step)
        batches = itertools.islice(stream, layout.n_micro)
        means.append(distillation.forward_backward(batches, settings).means())
        assert distillation.finish(settings)[0]
    return means, distillation.engine.state().student


def main(rank, world_size, rendezvous, output, dataset, *overrides):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    results = {}
    for stage in STAGES:
        means, student = run(dataset, overrides or BEYOND, rank, world_size, stage)
        gathered = [None] * world_size
        distributed.all_gather_object(gathered, means)
        results[stage] = gathered, student
    if rank == 0:
        torch.save(results, output)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    os._exit(0)  # As in zero_ranks.py.

"""A few steps of the tiny network under ZeRO with the options of the step on and off.

Run as: option_ranks.py DATASET RENDEZVOUS_FILE OUTPUT_FILE [OVERRIDE...]
"""

import itertools
import os
import sys

import torch
from golden_curve import OVERRIDES
from torch import distributed

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.step.zero import ZeroEngine
from terrafm.train.worker.setup import TrainingSetup

STAGES = (0, 1, 2, 3)
STEPS = 4
CASES = {
    "plain": [],
    "checkpointing": ["train.activation_checkpointing=blocks"],
    "compiled": ["train.compile=true"],
    "both": ["train.activation_checkpointing=blocks", "train.compile=true"],
}


def run(dataset, overrides, stage=None):
    """Losses, and the student by name; the plain engine without a stage."""
    config = load_config("demo", [*OVERRIDES, f"train.steps={STEPS}", *overrides])
    setup = TrainingSetup.open(config, dataset)
    layout = setup.layout(0, 1)

    def zero(student):
        return ZeroEngine(
            student,
            config.optim,
            stage=stage,
            precision="float32",
            micro_rows=layout.micro_rows,
            n_micro=layout.n_micro,
            persist_below=0,
        )

    distillation = (
        setup.plain_distillation()
        if stage is None
        else setup.distillation(zero, None, torch.device("cpu"))
    )
    batches = make_batches(**setup.stream_options(layout, 0))
    losses = []
    for step in range(STEPS):
        settings = setup.schedules.at(step)
        micro = itertools.islice(batches, layout.n_micro)
        losses.append(distillation.forward_backward(micro, settings).means()["loss"])
        assert distillation.finish(settings)[0]
    return losses, distillation.engine.state().student


def main(dataset, rendezvous, output, cases):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    results = {
        (case, stage): run(dataset, CASES[case], stage) for case in cases for stage in STAGES
    }
    torch.save(results, output)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
    # Without Python's own end: a thread of gloo may abort the process during it.
    os._exit(0)

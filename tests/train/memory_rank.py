"""How much memory one worker's network, optimizer and steps take, under ZeRO on a CPU.

Run as: memory_rank.py DATASET RENDEZVOUS_FILE OUTPUT_FILE STAGE [OVERRIDE...]
"""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.driver.estimate import PeakMemory
from terrafm.train.step.zero import ZeroEngine
from terrafm.train.worker.setup import TrainingSetup

STEPS = 2


def main(dataset, rendezvous, output, stage, *overrides):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    config = load_config("demo", [f"train.steps={STEPS}", *overrides])
    setup = TrainingSetup.open(config, dataset)
    layout = setup.layout(0, 1)
    read = list(
        itertools.islice(make_batches(**setup.stream_options(layout, 0)), 2 * layout.n_micro)
    )

    def engine(student):
        return ZeroEngine(
            student,
            config.optim,
            stage=int(stage),
            precision=config.train.precision,
            micro_rows=layout.micro_rows,
            n_micro=layout.n_micro,
            persist_below=0,
        )

    # The first optimizer of a process loads torch._dynamo: 160 MB of Python, which no model takes.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with PeakMemory() as memory:
        distillation = setup.distillation(engine, None, torch.device("cpu"))
        for step in range(STEPS):
            micro = read[step * layout.n_micro :][: layout.n_micro]
            settings = setup.schedules.at(step)
            distillation.forward_backward(iter(micro), settings)
            assert distillation.finish(settings)[0]
    Path(output).write_text(json.dumps({"bytes": memory.growth}))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Without Python's own end: a thread of gloo may abort the process during it.
    os._exit(0)

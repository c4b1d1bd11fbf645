"""Thirty steps of terrafm_tiny in float32 on one CPU thread, without Ray and DeepSpeed.

Run as a script it writes the curve that tests/data/golden_curve.json holds:
    python tests/train/golden_curve.py DATASET > tests/data/golden_curve.json
"""

import itertools
import json
import sys

import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.worker.setup import TrainingSetup

# Whatever decides the curve stands here: the recipe may change, the curve must not.
OVERRIDES = [
    "train.steps=30",
    "train.global_batch=8",
    "train.micro_batch=4",
    "head.num_prototypes=64",
    "head.hidden_dim=256",
    "head.bottleneck_dim=64",
    "loss.warmup_teacher_temp=0.03",
    "loss.teacher_temp=0.04",
    "data.global_size=64",
    "data.local_size=32",
    "data.local_crops=2",
    "model.drop_path=0.1",
    "optim.base_lr=0.004",
    "optim.teacher_momentum=0.98",
]


def run(dataset, overrides=()):
    """Loss, gradient norm and entropies of each step, and the final state."""
    torch.set_num_threads(1)
    setup = TrainingSetup.open(load_config("demo", [*OVERRIDES, *overrides]), dataset)
    distillation = setup.plain_distillation()
    layout = setup.layout(0, 1)
    batches = make_batches(**setup.stream_options(layout, 0))
    curve = []
    for step in range(setup.total_steps):
        settings = setup.schedules.at(step)
        micro = itertools.islice(batches, layout.n_micro)
        statistics = distillation.forward_backward(micro, settings)
        applied, grad_norm = distillation.finish(settings)
        assert applied
        curve.append(statistics.means() | {"grad_norm": grad_norm})
    return curve, setup.state(setup.total_steps, distillation.engine.state(), distillation)


if __name__ == "__main__":
    json.dump(run(sys.argv[1])[0], sys.stdout, indent=1)

"""One rank of the ZeRO tests: trains a small network under every stage, writes what came out.

Run as: zero_ranks.py RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT_FILE
"""

import os
import sys

import torch
from torch import distributed, nn

from terrafm.config import OptimConfig
from terrafm.models.dino_head import Prototypes
from terrafm.train.step.schedules import StepSettings
from terrafm.train.step.zero import ZeroEngine

STEPS, SWITCH, ROWS, MICRO = 6, 3, 12, 2
STAGES = (0, 1, 2, 3)
MORE_CASES = {
    "poisoned": {},
    "clipped": {"clip_by": "parameter"},
    "clipped_poisoned": {"clip_by": "parameter"},
    "layered": {"layer_decay": (0.5, 0.4)},
    "frozen": {"clip_by": "parameter"},
    "frozen_poisoned": {},
}
"""Beside plain training and resuming: settings of the optimizer."""


class Small(nn.Module):
    """Odd sizes, so that no stage divides them evenly."""

    def __init__(self):
        super().__init__()
        # The name decides its rate where layers have rates of their own.
        self.patch_embed = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.last_layer = Prototypes(7, 3)
        nn.init.normal_(self.last_layer.weight)

    def forward(self, x, freeze=False):
        return self.last_layer(self.norm(torch.tanh(self.patch_embed(x))), freeze)


def network(case=""):
    """The first layer of a case that says so is frozen."""
    torch.manual_seed(0)
    small = Small()
    small.patch_embed.requires_grad_(not case.startswith("frozen"))
    return small


def settings(step):
    return StepSettings(
        lr=0.01 * (step + 1),
        weight_decay=0.1,
        teacher_temp=0.04,
        teacher_momentum=0.9,
        freeze_prototypes=step < 2,
    )


def batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 3, generator=generator)


def train(engine, teacher, start, stop, rank, world_size, poison_at=None):
    """Each rank takes its rows of the global batch in two micro-batches; losses add up."""
    norms = []
    for step in range(start, stop):
        x, y = (part.tensor_split(world_size)[rank] for part in batch(step))
        if step == poison_at and rank == world_size - 1:
            x = x * float("nan")
        for xs, ys in zip(x.tensor_split(MICRO), y.tensor_split(MICRO), strict=True):
            out = engine.forward(xs, freeze=settings(step).freeze_prototypes)
            engine.backward(((out - ys) ** 2).sum() / ROWS)
        outcome = engine.step(settings(step))
        if outcome.applied:
            engine.update_teacher(teacher, 0.9)
        norms.append(outcome.grad_norm if outcome.applied else -1.0)
    return norms


def poisoned_step(case):
    return 4 if case.endswith("poisoned") else None


def flat(tensors):
    return torch.cat([t.flatten() for _, t in sorted(tensors.items())])


def main(rank, world_size, rendezvous, output):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    results = {}

    def engine(stage, student, persist_below=0, **options):
        return ZeroEngine(
            student,
            OptimConfig(clip_grad=0.5, **options),
            stage=stage,
            precision="float32",
            micro_rows=ROWS // world_size // MICRO,
            n_micro=MICRO,
            persist_below=persist_below,
        )

    def note(name, e, teacher, norms):
        state = e.state()
        results[name] = {
            "student": flat(state.student),
            "optimizer": flat(state.optimizer),
            "teacher": flat(dict(teacher.named_parameters())).detach(),
            "norms": norms,
        }

    saved = {}
    for stage in STAGES:
        student, teacher = network(), network().requires_grad_(False)
        e = engine(stage, student)
        norms = train(e, teacher, 0, SWITCH, rank, world_size)
        saved[stage] = (e.state(), {n: t.clone() for n, t in teacher.state_dict().items()})
        norms += train(e, teacher, SWITCH, STEPS, rank, world_size)
        note(f"straight_{stage}", e, teacher, norms)
    for stage in STAGES:
        for origin in {stage, (stage + 1) % 4}:
            state, teacher_state = saved[origin]
            student, teacher = network(), network().requires_grad_(False)
            student.load_state_dict(state.student)
            teacher.load_state_dict(teacher_state)
            e = engine(stage, student)
            e.load_optimizer(state.optimizer)
            norms = train(e, teacher, SWITCH, STEPS, rank, world_size)
            note(f"resumed_{origin}_{stage}", e, teacher, norms)
        for name, options in MORE_CASES.items():
            student, teacher = network(name), network().requires_grad_(False)
            e = engine(stage, student, **options)
            norms = train(e, teacher, 0, STEPS, rank, world_size, poisoned_step(name))
            note(f"{name}_{stage}", e, teacher, norms)
    for stage in STAGES:
        # Half of a frozen run, gone on with at the next stage.
        student, teacher = network("frozen"), network().requires_grad_(False)
        e = engine(stage, student, **MORE_CASES["frozen"])
        norms = train(e, teacher, 0, SWITCH, rank, world_size)
        state = e.state()
        student = network("frozen")
        student.load_state_dict(state.student)
        e = engine((stage + 1) % 4, student, **MORE_CASES["frozen"])
        e.load_optimizer(state.optimizer)
        norms += train(e, teacher, SWITCH, STEPS, rank, world_size)
        note(f"frozen_resumed_{stage}", e, teacher, norms)
    student, teacher = network(), network().requires_grad_(False)
    e = engine(3, student, persist_below=10**5)
    # All of this network's parameters are small: none is left in pieces.
    assert all(p.ds_persist for p in e.student.parameters())
    note("persistent", e, teacher, train(e, teacher, 0, STEPS, rank, world_size))
    if rank == 0:
        torch.save(results, output)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    # Without Python's own end: a thread of gloo that drops its last tensor during it aborts
    # the process, here about one time in ten.
    os._exit(0)

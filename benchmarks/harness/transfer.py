"""Weights trained on some cities, put to use on few others: adapted, distilled, or not used.

All are of the recipe real_cpu's size, and train for equally many steps on the same few cities.
The teacher that is distilled is as large as its student: a wider one takes hours on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.plain_training import Training

FEW = ("bordeaux", "pisa", "rennes")
"""The narrow archive."""

SOURCE, SCRATCH = "source", "scratch"
_USED = ("adapted", "adapted, frozen", "distilled")
AGAINST_SCRATCH = tuple((name, SCRATCH) for name in _USED)
AGAINST_SOURCE = tuple((name, SOURCE) for name in _USED)
"""Pairs of contestants that are compared place by place."""

# The recipe adapt has a Base's sizes; these are real_cpu's.
_SMALL = (
    "model.name=terrafm_tiny",
    "model.drop_path=0",
    "head.num_prototypes=1024",
    "head.hidden_dim=256",
    "data.modalities=[s1, s2_l1c]",
    "data.keep_probability=0.25",
    "data.local_crops=0",
    "data.global_size=64",
    "data.local_size=32",
    "optim.teacher_momentum=0.99",
    "train.global_batch=96",
    "train.micro_batch=96",
    "train.precision=float32",
)


def sources(base: Training, data: str, seeds: Sequence[int]) -> list[Training]:
    """Trainings whose weights the others begin with, one of each seed."""
    return [replace(base, name=SOURCE, data=data, seed=seed) for seed in seeds]


def contestants(base: Training, source: Training, work: Path) -> list[Training]:
    """What is trained on few cities with the weights of one source, and without them."""
    folder = source.folder(work)
    newest = sorted(folder.glob("step_*.safetensors"))[-1]
    start = f"model.init={newest}"
    ways = {
        SCRATCH: (base.recipe, ()),
        "adapted": ("adapt", (*_SMALL, start)),
        "adapted, frozen": ("adapt", (*_SMALL, start, "model.frozen=[patch_embed, blocks:1]")),
        "distilled": (base.recipe, (f"distil.teacher={newest}",)),
    }
    return [
        replace(
            base,
            name=name,
            recipe=recipe,
            overrides=(*overrides, *base.overrides),
            seed=source.seed,
        )
        for name, (recipe, overrides) in ways.items()
    ]

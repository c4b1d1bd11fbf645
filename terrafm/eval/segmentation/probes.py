"""Probes of frozen patch maps: AdamW with a cosine, learning rate by validation mIoU."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm.eval.probes.shuffling import shuffled
from terrafm.eval.segmentation.task import LogitsOf, MaskTask

_BATCH = 16


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe is fitted.

    Attributes:
        learning_rates: those that are tried, lowest first.
        epochs: over the training split.
        weight_decay: AdamW's.
    """

    learning_rates: tuple[float, ...]
    epochs: int
    weight_decay: float


@dataclass(frozen=True)
class FittedProbe:
    """A fitted probe.

    Attributes:
        probe: patch maps (B, L, D, h, w) and a shape to logits (B, C, H, W).
        learning_rate: what it was fitted with.
    """

    probe: nn.Module
    learning_rate: float


def logits_of(probe: nn.Module, maps: Tensor, device: torch.device) -> LogitsOf:
    """What predicts rows of a set from their patch maps.

    Args:
        probe: takes maps and a shape.
        maps: (N, L, D, h, w) of the whole set.
        device: where the probe is.
    """

    def predict(rows: NDArray[np.int64], shape: tuple[int, int]) -> Tensor:
        logits: Tensor = probe(maps[torch.from_numpy(rows)].to(device), shape)
        return logits

    return predict


def fit_best(
    build: Callable[[], nn.Module], maps: Tensor, task: MaskTask, recipe: ProbeRecipe
) -> FittedProbe:
    """Fits with each learning rate; the one with the best validation mIoU stays.

    Args:
        build: makes a fresh probe.
        maps: (N, L, D, h, w) patch maps of the whole set.
        task: masks; only its training split teaches.
        recipe: how.

    Raises:
        UsageError: no pixel of the validation split counts.
    """
    fitted = []
    for learning_rate in recipe.learning_rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            probe = build().to(task.device)
        _fit(probe, maps, task, recipe, learning_rate)
        score = task.validate(logits_of(probe, maps, task.device), task.splits["valid"])
        fitted.append((score, FittedProbe(probe, learning_rate)))
    return max(fitted, key=lambda found: found[0])[1]


def _fit(
    probe: nn.Module, maps: Tensor, task: MaskTask, recipe: ProbeRecipe, learning_rate: float
) -> None:
    train = task.splits["train"]
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=learning_rate, weight_decay=recipe.weight_decay
    )
    generator = np.random.default_rng(task.seed)
    predict = logits_of(probe, maps, task.device)
    epochs = [list(shuffled(train, _BATCH, generator)) for _ in range(recipe.epochs)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sum(map(len, epochs)))
    probe.train()
    for rows in (batch for epoch in epochs for batch in epoch):
        target = task.target(rows)
        if task.counted(target):
            loss = task.loss(predict(rows, task.shape), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    probe.eval()

"""Trains encoder and head; learning rate and epoch are chosen on the validation split.

AdamW with layer-wise decay of the learning rate, a linear warm-up and a cosine, all timm's, as
BEiT and MAE fine-tune; quarter turns and mirrorings are the only augmentation.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm.errors import UsageError
from terrafm.eval.finetune.models import NO_WEIGHT_DECAY
from terrafm.eval.finetune.pixels import SYMMETRIES
from terrafm.eval.probes.shuffling import shuffled

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
LAYER_DECAY = 0.75
WEIGHT_DECAY = 0.05
BATCH = 32
WARM_UP = 0.1
# Epochs without a better validation score that end a training.
PATIENCE = 10

# Receives, in a few words, what is being done.
Tell = Callable[[str], None]


def prefixed(tell: Tell, prefix: str) -> Tell:
    """Tells with a prefix: of what row, what fold."""
    return lambda text: tell(prefix + text)


class Objective(Protocol):
    """What is learned, and how it is scored."""

    def build(self) -> nn.Module:
        """A fresh head on a copy of the encoder, on the device."""
        ...

    def loss(
        self, model: nn.Module, rows: NDArray[np.int64], symmetries: Sequence[int]
    ) -> Tensor | None:
        """Mean loss of a batch; None where it has nothing to learn from."""
        ...

    def validate(self, model: nn.Module, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Score, and minus the loss for scores that are equal; more is better."""
        ...


@dataclass(frozen=True)
class Tuned:
    """The best of all trainings.

    Attributes:
        model: encoder and head, in eval mode.
        learning_rate: of the head; blocks below have less.
        epoch: after which it was the best, from 1.
        score: its validation score, and minus its loss.
    """

    model: nn.Module
    learning_rate: float
    epoch: int
    score: tuple[float, float]


def layer_groups(model: nn.Module) -> list[dict[str, object]]:
    """Parameter groups whose `lr_scale` is 0.75 to the power of layers above.

    Args:
        model: one of `terrafm.eval.finetune.models`.
    """
    from timm.optim import param_groups_layer_decay

    groups: list[dict[str, object]] = param_groups_layer_decay(
        model,
        weight_decay=WEIGHT_DECAY,
        no_weight_decay_list=NO_WEIGHT_DECAY,
        layer_decay=LAYER_DECAY,
    )
    return groups


def fine_tune(
    objective: Objective,
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    tell: Tell = lambda _: None,
) -> Tuned:
    """Trains with each learning rate and keeps the best epoch of the best.

    Args:
        objective: what is learned.
        train: rows to learn from.
        valid: rows to choose by.
        epochs: at most; the cosine is laid out for them.
        seed: of head, order and augmentation.
        tell: receives the progress.

    Raises:
        UsageError: the loss is not finite with any learning rate.
    """
    best: Tuned | None = None
    for learning_rate in LEARNING_RATES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = objective.build()
        found = _train(objective, model, train, valid, epochs, learning_rate, seed, tell)
        if found is not None and (best is None or found.score > best.score):
            best = found
    if best is None:
        raise UsageError("fine-tuning: the loss is not finite, with whatever learning rate")
    return best


def _train(
    objective: Objective,
    model: nn.Module,
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    epochs: int,
    learning_rate: float,
    seed: int,
    tell: Tell,
) -> Tuned | None:
    """The best epoch; None where the loss stops being finite before there is one."""
    optimizer = torch.optim.AdamW(layer_groups(model), lr=learning_rate)
    generator = np.random.default_rng(seed)
    plan = [list(shuffled(train, BATCH, generator)) for _ in range(epochs)]
    steps = sum(map(len, plan))
    # The last step of the warm-up has the whole rate, the first one already some.
    warm_up = max(1, round(WARM_UP * steps))
    from timm.scheduler import CosineLRScheduler

    schedule = CosineLRScheduler(
        optimizer, steps, warmup_t=warm_up, warmup_lr_init=learning_rate / warm_up,
        t_in_epochs=False,
    )  # fmt: skip
    best: Tuned | None = None
    state: dict[str, Tensor] = {}
    step = 0
    for epoch, batches in enumerate(plan, 1):
        model.train()
        for rows in batches:
            schedule.step_update(step)
            step += 1
            symmetries = generator.integers(SYMMETRIES, size=len(rows)).tolist()
            loss = objective.loss(model, rows, symmetries)
            if loss is None:
                continue
            if not math.isfinite(loss.item()):
                return _restored(best, state)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        score = objective.validate(model.eval(), valid)
        if best is None or score > best.score:
            best = Tuned(model, learning_rate, epoch, score)
            state = copy.deepcopy(model.state_dict())
        tell(
            f"learning rate {learning_rate:g}, epoch {epoch} of {epochs}, best score on "
            f"validation {best.score[0]:.3f}"
        )
        if epoch - best.epoch >= PATIENCE:
            break
    return _restored(best, state)


def _restored(best: Tuned | None, state: dict[str, Tensor]) -> Tuned | None:
    if best is not None:
        best.model.load_state_dict(state)
        best.model.eval()
    return best

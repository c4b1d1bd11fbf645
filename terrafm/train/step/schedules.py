"""Everything that changes from step to step: learning rate, decay, temperatures, momentum."""

import math
from dataclasses import dataclass

from terrafm.config import LossConfig, OptimConfig

# Of a run's steps, at most: warm-up, and the first steps with frozen prototypes.
_SHORT_RUN = 0.1
# In which the prototypes do not move yet (DINO).
_FROZEN_EPOCHS = 1
_LAST_LR = 1e-6


@dataclass(frozen=True)
class StepSettings:
    """The values one step trains with."""

    lr: float
    weight_decay: float
    teacher_temp: float
    teacher_momentum: float
    freeze_prototypes: bool


class Schedules:
    """Values per step over a run of `total_steps`, DINO's shapes (arXiv 2104.14294).

    The learning rate rises linearly from 0 over the warm-up, then falls as a cosine to 1e-6;
    weight decay and teacher momentum follow cosines over the whole run; the teacher temperature
    rises linearly over the warm-up. Warm-up and freezing last as many epochs as configured, but
    no longer than the configured share of the steps.

    Args:
        optim: optimizer settings; `base_lr` holds at a global batch of 256 and scales with the
            batch (DINO), or with its square root (DINOv2).
        loss: temperatures.
        total_steps: steps of the whole run.
        steps_per_epoch: epoch length / global batch; may be below 1.
        global_batch: samples of one step.
    """

    def __init__(
        self,
        optim: OptimConfig,
        loss: LossConfig,
        *,
        total_steps: int,
        steps_per_epoch: float,
        global_batch: int,
    ) -> None:
        self._optim = optim
        self._loss = loss
        self.total_steps = total_steps
        scale = global_batch / 256
        self.peak_lr = optim.base_lr * (scale if optim.lr_scaling == "linear" else scale**0.5)
        self.warmup_steps = _at_most(
            optim.warmup_epochs * steps_per_epoch, _SHORT_RUN * total_steps
        )
        self.frozen_steps = _at_most(_FROZEN_EPOCHS * steps_per_epoch, _SHORT_RUN * total_steps)

    def at(self, step: int) -> StepSettings:
        """The settings of step `step`, counted from 0."""
        warm = step / self.warmup_steps if step < self.warmup_steps else 1.0
        if warm < 1.0:
            lr = self.peak_lr * warm
        else:
            cooling = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
            lr = _cosine(self.peak_lr, _LAST_LR, cooling)
        start, end = self._loss.warmup_teacher_temp, self._loss.teacher_temp
        progress = step / self.total_steps
        return StepSettings(
            lr=lr,
            weight_decay=_cosine(self._optim.weight_decay, self._optim.weight_decay_end, progress),
            teacher_temp=start + (end - start) * warm,
            teacher_momentum=_cosine(self._optim.teacher_momentum, 1.0, progress),
            freeze_prototypes=step < self.frozen_steps,
        )


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _at_most(epochs_in_steps: float, share_in_steps: float) -> int:
    # A hair is added because 0.1 * 30 is 3.0000000000000004 and 0.1 * 70 is 7.000000000000001,
    # but 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
    return math.floor(min(epochs_in_steps, share_in_steps) + 1e-9)

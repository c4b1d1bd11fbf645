"""What every way to train an encoder has in common: a student, its moving average, one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from terrafm.config import Config
from terrafm.data.samples.batch import HostBatch
from terrafm.models.encoder import Encoder, build_encoder
from terrafm.train.step.collapse import FeatureSample
from terrafm.train.step.compiler import check_compiler
from terrafm.train.step.engine import Engine
from terrafm.train.step.frozen import freeze
from terrafm.train.step.schedules import StepSettings
from terrafm.train.step.timer import Phases, untimed


class TrainedNetwork(nn.Module):
    """An encoder, and what training puts behind it.

    Attributes:
        encoder: what is exported.
    """

    encoder: Encoder

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = build_encoder(
            config.model.name,
            drop_path=config.model.drop_path,
            num_queries=config.model.num_queries,
            modalities=config.data.modalities,
        )


_Network = TypeVar("_Network", bound=TrainedNetwork)


@dataclass
class StepStatistics:
    """Sums over one step's samples; divide by their number for means.

    Attributes:
        sums: (len(terms) + 1,) float64: each term, and samples.
        terms: names of the sums; those without one are not told.
        losses: (B,) loss of each row, one tensor for each micro-batch; never summed over ranks.
    """

    sums: Tensor
    terms: Sequence[str]
    losses: list[Tensor] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Means over the samples, of terms that are on; empty where every sample was left out."""
        *sums, samples = self.sums.tolist()
        if not samples:
            return {}
        return {name: s / samples for name, s in zip(self.terms, sums, strict=True) if name}


class TrainingStep(ABC):
    """One training step over an engine.

    Attributes:
        engine: holds the student.
        teacher: moving average of the student, float32, never trained by gradients: what is
            validated and exported.
        teacher_features: the newest CLS tokens, of each tile's first global crop.
        frozen_model: architecture of a frozen teacher, if there is one beside the average.
    """

    frozen_model: str | None = None

    def __init__(
        self, engine: Engine, teacher: TrainedNetwork, *, precision: str, device: torch.device
    ) -> None:
        self.engine = engine
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher_features = FeatureSample()
        self._device = device
        self._autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.bfloat16,
            "enabled": precision == "bf16",
        }

    @abstractmethod
    def forward_backward(
        self, batches: Iterable[HostBatch], settings: StepSettings, phases: Phases = untimed
    ) -> StepStatistics:
        """Adds up the gradients of this rank's micro-batches.

        A loss that is not finite makes the gradients NaN, so that `finish` leaves out the step on
        all ranks.

        Args:
            batches: the micro-batches.
            settings: of the step.
            phases: times the step's phases.

        Returns:
            This rank's sums and losses, still on the device.
        """

    @abstractmethod
    def finish(self, settings: StepSettings, phases: Phases = untimed) -> tuple[bool, float]:
        """Optimizer and moving averages; nothing where a loss or gradient is not finite.

        Returns:
            Whether the step was applied, and the gradient norm before clipping.
        """

    def centers(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside networks and optimizer: name -> buffer."""
        return {}

    def figures(self) -> dict[str, float]:
        """What a line of metrics.jsonl says of the objective besides the means."""
        return {}


def build_pair(config: Config, make: Callable[[], _Network]) -> tuple[_Network, _Network]:
    """A student with seeded initial weights and its moving average, equal to it.

    Both run as `train.activation_checkpointing` and `train.compile` say; neither changes what
    they compute or what their parameters are called. Parts that `model.frozen` names have no
    gradient.

    Raises:
        UsageError: `train.compile` where there is no compiler, or blocks to freeze that are not
            there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        student, teacher = make(), make()
    teacher.load_state_dict(student.state_dict())
    freeze(student.encoder, config.model.frozen)
    student.encoder.activation_checkpointing = config.train.activation_checkpointing == "blocks"
    if config.train.compile:
        check_compiler()
        student.encoder.compile_blocks()
        teacher.encoder.compile_blocks()
    return student, teacher


def finite_share(losses: Tensor, weight: Tensor, global_batch: int) -> Tensor:
    """A micro-batch's share of the mean loss; NaN gradients where it is not finite.

    Args:
        losses: (B,) of each row.
        weight: (B,) of each row.
        global_batch: samples of the step over all ranks.
    """
    share = (losses * weight).sum() / global_batch
    # 1, or NaN: then every gradient is NaN, and the check of the gradients, which all ranks
    # share, is one of the losses too. No device is waited for.
    return share * (1 + 0 * share.detach())

"""What turns a loss into an update of the student: one interface, plain PyTorch or ZeRO."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from terrafm.config import OptimConfig
from terrafm.errors import UsageError
from terrafm.train.step.optimizer import (
    MOMENTS,
    GuardedAdamW,
    build_optimizer,
    create_moments,
    group_of,
    parameter_groups,
    trained_groups,
    trained_parameters,
    write_settings,
)
from terrafm.train.step.schedules import StepSettings


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    Attributes:
        applied: False where a gradient was not finite: nothing was changed.
        grad_norm: global norm of the averaged gradients before clipping.
    """

    applied: bool
    grad_norm: float


@dataclass
class EngineState:
    """Student and optimizer as full tensors: free of world size and ZeRO stage.

    Attributes:
        student: parameter name -> float32 tensor.
        optimizer: "exp_avg.<parameter>", "exp_avg_sq.<parameter>" -> float32 tensor of the
            shape of a parameter that is not frozen; "step.<group>" -> number of updates of the
            group.
    """

    student: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Engine(ABC):
    """Forward, backward and update of a student.

    Losses of one step's micro-batches and ranks add up: each rank calls `backward` with its
    share of the global mean, already divided by the global batch.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student

    @abstractmethod
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The student's output, under the configured precision."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch's share of the loss."""

    @abstractmethod
    def step(self, settings: StepSettings) -> StepOutcome:
        """Reduces, checks, clips and applies the gradients; collective."""

    @abstractmethod
    def update_teacher(self, teacher: nn.Module, momentum: float) -> None:
        """Teacher <- momentum * teacher + (1 - momentum) * student, in float32; collective."""

    @abstractmethod
    def state(self, keep: bool = True) -> EngineState | None:
        """Full state on the CPU, None on ranks with `keep` False; collective."""

    @abstractmethod
    def load_optimizer(self, optimizer: dict[str, Tensor]) -> None:
        """Fills moments and step counts from `EngineState.optimizer`; collective."""


class PlainEngine(Engine):
    """One process, no DeepSpeed: the reference that ZeRO must agree with."""

    def __init__(
        self, student: nn.Module, config: OptimConfig, *, precision: str, device: torch.device
    ) -> None:
        super().__init__(student)
        groups = parameter_groups(student, config.layer_decay)
        optimizer = build_optimizer(groups, config, guarded=True)
        assert isinstance(optimizer, GuardedAdamW)
        self.optimizer = optimizer
        self._autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
        )
        create_moments(optimizer, iter(optimizer.parameters()))

    @override
    def forward(self, *inputs: Any, **options: Any) -> Any:
        with self._autocast:
            return self.student(*inputs, **options)

    @override
    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    @override
    def step(self, settings: StepSettings) -> StepOutcome:
        write_settings(self.optimizer.param_groups, settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if settings.freeze_prototypes:
            reset_step_count(self.optimizer, group_parameters(self.optimizer, "prototypes"))
        return StepOutcome(not self.optimizer.overflow, self.optimizer.grad_norm)

    @override
    def update_teacher(self, teacher: nn.Module, momentum: float) -> None:
        lerp_teacher(list(teacher.parameters()), list(self.student.parameters()), momentum)

    @override
    def state(self, keep: bool = True) -> EngineState | None:
        return replicated_state(self.student, self.optimizer) if keep else None

    @override
    def load_optimizer(self, optimizer: dict[str, Tensor]) -> None:
        load_replicated(self.student, self.optimizer, optimizer)


@torch.no_grad()
def lerp_teacher(teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float) -> None:
    """One fused EMA update; both sides float32, since in bfloat16 it stops moving."""
    torch._foreach_lerp_(list(teacher), list(student), 1.0 - momentum)


def group_parameters(optimizer: torch.optim.Optimizer, name: str) -> list[Tensor]:
    """The tensors of one of `GROUPS`."""
    groups = [group["params"] for group in optimizer.param_groups if group["name"] == name]
    return [parameter for parameters in groups for parameter in parameters]


def reset_step_count(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Forgets updates of a frozen group: its bias correction starts when it thaws.

    A frozen parameter's gradient is an exact zero, so its moments are still zero.
    """
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()


def replicated_state(student: nn.Module, optimizer: torch.optim.Optimizer) -> EngineState:
    """State of an optimizer whose tensors are the student's own parameters."""
    moments = {
        f"{key}.{name}": cpu(optimizer.state[parameter][key])
        for name, parameter in trained_parameters(student)
        for key in MOMENTS
    }
    steps = {
        f"step.{name}": cpu(optimizer.state[group_parameters(optimizer, name)[0]]["step"])
        for name in trained_groups(student)
    }
    return EngineState(
        {name: cpu(parameter) for name, parameter in student.named_parameters()},
        moments | steps,
    )


def load_replicated(
    student: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    """The inverse of `replicated_state` for the optimizer's part."""
    for name, parameter in trained_parameters(student):
        state = optimizer.state[parameter]
        for key in MOMENTS:
            state[key].copy_(saved[f"{key}.{name}"])
        state["step"].copy_(saved[f"step.{group_of(name)}"])


def check_optimizer(student: nn.Module, saved: Mapping[str, Tensor], where: str) -> None:
    """Refuses an optimizer's state that is not this student's, before an engine takes it apart.

    Args:
        student: with whole parameters.
        saved: as `EngineState.optimizer`.
        where: URI of its file.

    Raises:
        UsageError: a moment or count is missing, has another shape or is no number.
    """
    wanted = {
        f"{key}.{name}": tuple(parameter.shape)
        for name, parameter in trained_parameters(student)
        for key in MOMENTS
    }
    groups = trained_groups(student)
    wanted |= {f"step.{name}": () for name in groups}
    for name, shape in wanted.items():
        found = saved.get(name)
        if found is None or tuple(found.shape) != shape or not found.is_floating_point():
            has = "it is missing"
            if found is not None:
                has = f"found {_described(found.shape, found.dtype)}"
            raise UsageError(
                f"{where} is not of the model in its settings: {name} has to be "
                f"{_described(shape, torch.float32)}, {has}"
            )
    for name in groups:
        count = float(saved[f"step.{name}"])
        # AdamW takes powers of it.
        if not (math.isfinite(count) and count >= 0):
            raise UsageError(f"{where} is damaged: step.{name} has to be 0 or more, found {count}")


def _described(shape: Sequence[int], dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    return f"{kind} of {' x '.join(map(str, shape))}" if shape else f"one {kind}"


def cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU that no later update changes."""
    return tensor.detach().to("cpu", copy=True).contiguous()

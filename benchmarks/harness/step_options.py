"""What of a training step can be switched off or on, for benchmarks/step.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.dense_loss import DenseDINOLoss
from harness.step_work import one_step
from terrafm.config import OptimConfig
from terrafm.data.samples.batch import HostBatch
from terrafm.models.encoder import Encoder
from terrafm.train.step.distillation import SelfDistillation
from terrafm.train.step.optimizer import build_optimizer, create_moments, parameter_groups
from terrafm.train.step.prefetch import Transfer


@dataclass(frozen=True)
class Option:
    """One optimisation.

    Attributes:
        name: of the figure.
        other: makes the step that is compared with the default one, while the context lasts.
        on: whether the other step is the one that has the optimisation.
    """

    name: str
    other: Callable[[SelfDistillation], AbstractContextManager[None]]
    on: bool = False


class Step:
    """A step whose micro-batches are copied to the GPU while the step before computes.

    Args:
        distillation: the step.
        batches: its micro-batches, the same in every step.
        device: where it runs.
    """

    def __init__(
        self, distillation: SelfDistillation, batches: list[HostBatch], device: torch.device
    ) -> None:
        self.distillation = distillation
        self.batches = batches
        self._device = device
        self._coming: list[HostBatch] = []

    def __call__(self, overlap: bool = True) -> float:
        """Trains one step; returns its loss."""
        transfer = Transfer(self._device, overlap)
        current = self._coming or [transfer(batch) for batch in self.batches]
        self._coming = [transfer(batch) for batch in self.batches] if overlap else []
        return one_step(self.distillation, current)


def options(device: torch.device, compiler: bool) -> list[Option]:
    """Those that make a difference on a device.

    Args:
        device: where the step runs.
        compiler: whether torch.compile can be used.
    """
    found = [
        Option("activation checkpointing of blocks", _checkpointing, on=True),
        Option("loss view by view", _dense_loss),
        Option("attention in a fused kernel", _unfused_attention),
        Option("teacher updated in one call", _slow_teacher),
        Option("garbage collection under control", _python_collects),
    ]
    if compiler:
        found.append(Option("blocks compiled", _compiled, on=True))
    if device.type == "cuda":
        found.append(Option("AdamW in a fused kernel", _unfused_optimizer))
    return found


def encoders(distillation: SelfDistillation) -> list[Encoder]:
    """The student's and the teacher's."""
    student = distillation.engine.student
    return [student.get_submodule("encoder"), distillation.teacher.encoder]


@contextmanager
def _checkpointing(distillation: SelfDistillation) -> Iterator[None]:
    encoder = encoders(distillation)[0]
    encoder.activation_checkpointing = True
    yield
    encoder.activation_checkpointing = False


@contextmanager
def _dense_loss(distillation: SelfDistillation) -> Iterator[None]:
    criterion = distillation.criterion
    usual = type(criterion)
    criterion.__class__ = DenseDINOLoss
    yield
    criterion.__class__ = usual


def _unfused_attention(_: SelfDistillation) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


@contextmanager
def _slow_teacher(distillation: SelfDistillation) -> Iterator[None]:
    engine = distillation.engine

    @torch.no_grad()
    def update(teacher: nn.Module, momentum: float) -> None:
        pairs = zip(teacher.parameters(), engine.student.parameters(), strict=True)
        for old, new in pairs:
            old.mul_(momentum).add_(new.detach(), alpha=1 - momentum)

    engine.update_teacher = update
    yield
    del engine.update_teacher


@contextmanager
def _python_collects(_: SelfDistillation) -> Iterator[None]:
    gc.unfreeze()
    gc.enable()
    yield
    gc.freeze()
    gc.disable()


@contextmanager
def _compiled(distillation: SelfDistillation) -> Iterator[None]:
    for encoder in encoders(distillation):
        encoder.compile_blocks()
    yield
    for encoder in encoders(distillation):
        for block in encoder.blocks:
            del block.forward


@contextmanager
def _unfused_optimizer(distillation: SelfDistillation) -> Iterator[None]:
    engine = distillation.engine
    usual = engine.optimizer
    groups = parameter_groups(engine.student)
    other = build_optimizer(groups, OptimConfig(), guarded=True, fused=False)
    create_moments(other, iter(other.parameters()))
    engine.optimizer = other
    yield
    engine.optimizer = usual


@contextmanager
def counted_attention() -> Iterator[None]:
    """Attention as matrix products, which are counted as FLOPs without being computed twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def default(_: SelfDistillation) -> AbstractContextManager[None]:
    """The step as it is configured."""
    return nullcontext()

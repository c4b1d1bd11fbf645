"""What a step gives its device to do and what it keeps, counted: the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.step_work import SETTINGS
from terrafm.data.samples.batch import HostBatch
from terrafm.train.step.distillation import SelfDistillation

# They give a device nothing to do.
_NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class OperationCount(TorchDispatchMode):
    """Counts the operations that PyTorch hands to a device, those of the backward pass too.

    Views and allocations are none. A call over a list of tensors (`_foreach_*`, a fused
    optimizer) is one, though a GPU may need several kernels for a long list.

    Attributes:
        by_phase: phase of the step -> operations.
        by_name: ATen's name -> operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_phase: Counter[str] = Counter()
        self.by_name: Counter[str] = Counter()
        self._phase = "other"

    @contextmanager
    def phases(self, name: str) -> Iterator[None]:
        """As a step's `Phases`: what runs inside counts as `name`."""
        before, self._phase = self._phase, name
        yield
        self._phase = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Counts one and runs it."""
        name = func.overloadpacket.__name__
        if not (func.is_view or name in _NOTHING):
            self.by_phase[self._phase] += 1
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


def operations(distillation: SelfDistillation, batches: list[HostBatch]) -> OperationCount:
    """Trains one step and counts; eager, since compiled code asks PyTorch for nothing."""
    with OperationCount() as count:
        distillation.forward_backward(batches, SETTINGS, count.phases)
        distillation.finish(SETTINGS, count.phases)
    return count


def saved_bytes(distillation: SelfDistillation, batch: HostBatch) -> float:
    """Bytes that one micro-batch's forward pass keeps for its backward pass; no step is made.

    Each storage counts once. Parameters and buffers, which exist anyhow, do not.
    """
    student = distillation.engine.student
    own = {t.untyped_storage().data_ptr() for t in (*student.parameters(), *student.buffers())}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            # Its address must not be given to another tensor while this counts.
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        distillation.forward_backward([batch], SETTINGS)
    for parameter in student.parameters():
        parameter.grad = None
    distillation.criterion.discard_pending()
    return float(sum(kept.values()))

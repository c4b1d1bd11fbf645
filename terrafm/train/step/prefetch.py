"""Micro-batches on their way to the GPU while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from terrafm.data.samples.batch import Batch, HostBatch, SampleInfo


@dataclass
class InFlight:
    """A micro-batch whose copy to the GPU has begun; `to` waits for it, on the GPU only.

    `to` can be called once: what it gives is held no longer here. Attributes as in `HostBatch`,
    on the CPU.
    """

    batch: Batch | None
    arrived: torch.cuda.Event
    samples: SampleInfo

    def to(self, device: torch.device | str) -> Batch:
        """The batch, for work that is given to the current stream from now on."""
        batch, self.batch = self.batch, None
        assert batch is not None
        stream = torch.cuda.current_stream(torch.device(device))
        stream.wait_event(self.arrived)
        for tensor in tensors(batch):
            # Its memory belongs to the copying stream, which must not hand it on too early.
            tensor.record_stream(stream)
        return batch


class Transfer:
    """Begins copies on a stream of their own; on a CPU it hands batches through.

    Called in the thread that makes the batches, ahead of the one that trains. Copies come from
    pinned memory (`terrafm.data.samples.batch.pin`); so do the tiles of `data.crop_on: device`,
    whose crops are cut on that stream as well. All micro-batches of a step and those made ahead
    then lie on the GPU: about 6 MB a sample at DINO's crops.

    Args:
        device: where the batches go.
        overlap: false hands them through, to be copied when they are needed.
    """

    def __init__(self, device: torch.device, overlap: bool = True) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if overlap and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: HostBatch) -> HostBatch:
        """Begins the copy of one micro-batch."""
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
            arrived = self._stream.record_event()
        return InFlight(moved, arrived, batch.samples)


def tensors(value: Any) -> Iterator[Tensor]:
    """All CUDA tensors of a batch."""
    if isinstance(value, Tensor):
        if _on_gpu(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda

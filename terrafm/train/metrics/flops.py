"""Floating-point operations of a training step, counted from the configuration.

A multiply-add is two operations. Matrix products, convolutions and attention are counted, as
`torch.utils.flop_counter` does; norms, activations, softmaxes and the optimizer are not. What
does not grow with the batch (fusion's queries through its key projection) is left out: below
0.01 % for Base at 16 samples a micro-batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from terrafm.config import Config, DataConfig, HeadConfig
from terrafm.data.samples.masks import MASK_PROBABILITY, MASK_RATIO
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import ARCHITECTURES
from terrafm.models.patch_embed import PATCH_SIZE

_MLP_RATIO = 4

# Dense (not sparse) bfloat16 operations per second, from NVIDIA's data sheets; V100 and T4 have
# no bfloat16 units, theirs are float16. All words must be in the device's name, first match wins.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250e12),
    (("GH200",), 989e12),
    (("H200",), 989e12),
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
    (("A10",), 125e12),
    (("V100", "PCIE"), 112e12),
    (("V100",), 125e12),
    (("T4",), 65e12),
)


@dataclass(frozen=True)
class ImageFlops:
    """One image through the encoder.

    Attributes:
        patches: patch embedding of all its modalities.
        rest: fusion, projection and transformer.
    """

    patches: float
    rest: float

    @property
    def forward(self) -> float:
        """Operations of the forward pass."""
        return self.patches + self.rest

    @property
    def backward(self) -> float:
        """Twice the forward, but for the pixels, which need no gradient."""
        return self.patches + 2 * self.rest


@dataclass(frozen=True)
class SampleFlops:
    """One sample of a training step; recomputed activations do not count.

    Attributes:
        teacher: forward pass of encoder and head over the global crops.
        forward: of the student's encoder and head over all crops, and the loss.
        backward: of the same.
    """

    teacher: float
    forward: float
    backward: float

    @property
    def total(self) -> float:
        """All operations of the sample."""
        return self.teacher + self.forward + self.backward


def image_flops(
    model: str,
    size: int,
    present: Mapping[str, float],
    num_queries: int,
    patch_tokens: bool = False,
) -> ImageFlops:
    """Operations of one image.

    Args:
        model: key of `ARCHITECTURES`.
        size: side of the image, pixels.
        present: modality -> how often an image has it, 0 to 1.
        num_queries: fusion queries per position.
        patch_tokens: all tokens come out of the last block; else it computes the CLS token alone,
            out of the keys and values of all.
    """
    architecture = ARCHITECTURES[model]
    dim, depth = architecture.embed_dim, architecture.depth
    wide = 3 * dim
    positions = (size // PATCH_SIZE) ** 2
    tokens = positions + 1
    patch_pixels = sum(MODALITIES[m].channels * share for m, share in present.items())
    patches = positions * wide * patch_pixels * PATCH_SIZE**2
    fusion = positions * wide * (num_queries + 1) * sum(present.values())
    projection = positions * wide * (2 * wide + dim)
    of_token = 2 * (1 + _MLP_RATIO) * dim**2 + 2 * tokens * dim
    block = tokens * (2 * dim**2 + of_token)
    last = block if patch_tokens else tokens * 2 * dim**2 + of_token
    return ImageFlops(2 * patches, 2 * (fusion + projection + (depth - 1) * block + last))


def head_flops(dim: int, head: HeadConfig) -> float:
    """Operations of the forward pass of one embedding through the projection head."""
    hidden, bottleneck = head.hidden_dim, head.bottleneck_dim
    return 2.0 * (dim * hidden + hidden**2 + hidden * bottleneck + bottleneck * head.num_prototypes)


def sample_flops(config: Config, teacher: str | None = None) -> SampleFlops:
    """Expected operations of one sample whose tile has all configured modalities.

    What is frozen counts as if it were trained.

    Args:
        config: of the run.
        teacher: architecture of a frozen teacher that is distilled; None where the student's
            average teaches.
    """
    if teacher is not None:
        return _distilled_flops(config, teacher)
    data, model = config.data, config.model
    present = expected_modalities(data)
    masking = config.loss.masked_patch_weight > 0
    whole, part = (
        image_flops(model.name, size, present, model.num_queries, masking)
        for size in (data.global_size, data.local_size)
    )
    head = head_flops(ARCHITECTURES[model.name].embed_dim, config.head)
    views = data.global_crops + data.local_crops
    pairs = 2.0 * data.global_crops * views * config.head.num_prototypes
    masked = data.global_crops * _masked_patches(config)
    return SampleFlops(
        teacher=data.global_crops * (whole.forward + head) + masked * head,
        forward=data.global_crops * whole.forward
        + data.local_crops * part.forward
        + (views + masked) * head
        + pairs,
        # The teacher's side of the loss has no gradient.
        backward=data.global_crops * whole.backward
        + data.local_crops * part.backward
        + 2 * (views + masked) * head
        + pairs,
    )


def _distilled_flops(config: Config, teacher: str) -> SampleFlops:
    """Both networks see all crops, and give the patch tokens of the global ones."""
    data, model = config.data, config.model
    present = expected_modalities(data)
    counts = (data.global_crops, data.local_crops)
    sizes = (data.global_size, data.local_size)
    ours, theirs = (
        [image_flops(name, size, present, model.num_queries, True) for size in sizes]
        for name in (model.name, teacher)
    )
    patches = data.global_crops * (data.global_size // PATCH_SIZE) ** 2
    dim, width = (ARCHITECTURES[name].embed_dim for name in (model.name, teacher))
    head = 2.0 * dim * width * (sum(counts) + patches)
    return SampleFlops(
        teacher=sum(n * image.forward for n, image in zip(counts, theirs, strict=True)),
        forward=sum(n * image.forward for n, image in zip(counts, ours, strict=True)) + head,
        backward=sum(n * image.backward for n, image in zip(counts, ours, strict=True)) + 2 * head,
    )


def _masked_patches(config: Config) -> float:
    """Expected masked patches of a global crop, each of which goes through both heads."""
    if not config.loss.masked_patch_weight:
        return 0.0
    patches = (config.data.global_size // PATCH_SIZE) ** 2
    return MASK_PROBABILITY * sum(MASK_RATIO) / 2 * patches


def expected_modalities(data: DataConfig) -> dict[str, float]:
    """How often a view has each modality: kept with probability p, or drawn where none is kept."""
    count, keep = len(data.modalities), data.keep_probability
    share = keep + (1 - keep) ** count / count if data.fusion else 1 / count
    return dict.fromkeys(data.modalities, share)


def device_peak(device: torch.device) -> float | None:
    """Peak operations per second of a training device; None where it is not known."""
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its CUDA name, operations per second; None if unknown."""
    words = {word.upper() for word in re.split(r"[\s\-]+", name)}
    if "MIG" in words:  # A part of a GPU, whose share of the peak its name does not say.
        return None
    for wanted, peak in _PEAKS:
        if words.issuperset(word.upper() for word in wanted):
            return peak
    return None

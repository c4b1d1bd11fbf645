"""Which numbers of an encoder stand for an image: its CLS token, or moments of its patch tokens."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # The command line lists the readouts, and answers before torch is loaded.
    from torch import Tensor

    from terrafm.models.encoder import Encoder

# Tokens of a uniform image do not deviate; their logarithm stays finite.
_LEAST_DEVIATION = 1e-6


class Readout(StrEnum):
    """What of an encoder's output is an image's embedding."""

    CLS = "cls"
    MEAN = "mean"
    MEAN_STD = "mean+std"

    def width(self, encoder: Encoder) -> int:
        """Numbers of an embedding."""
        return encoder.embed_dim * (2 if self is Readout.MEAN_STD else 1)

    def of(self, encoder: Encoder, pixels: Mapping[str, Tensor]) -> Tensor:
        """Embeds images.

        The mean of the normed patch tokens; beside it the logarithm of their standard deviation,
        which tells texture from flat ground and is to be standardised (`finished`).

        Args:
            encoder: in eval mode.
            pixels: modality -> (B, C, H, W), as the encoder takes them.

        Returns:
            (B, `width`) float32.
        """
        import torch

        if self is Readout.CLS:
            return torch.as_tensor(encoder(pixels)).float()
        return self.of_tokens(*encoder.forward_tokens(pixels))

    def of_tokens(self, cls_token: Tensor, patches: Tensor) -> Tensor:
        """The same of what `Encoder.forward_tokens` gave.

        Args:
            cls_token: (B, D) normed.
            patches: (B, D, h, w) normed.

        Returns:
            (B, `width`) float32.
        """
        import torch

        if self is Readout.CLS:
            return cls_token.float()
        tokens = patches.float().flatten(2)
        mean = tokens.mean(-1)
        if self is Readout.MEAN:
            return mean
        deviation = tokens.std(-1, correction=0).clamp(min=_LEAST_DEVIATION).log()
        return torch.cat([mean, deviation], dim=1)

    def finished(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings of a set as cosines compare them: rows of unit length.

        Moments are standardised over the set first: they differ in scale.

        Args:
            features: (N, `width`); rows of zeros are images without the modality, and stay.
        """
        there = np.abs(features).sum(1) > 0
        result = np.zeros_like(features)
        rows = features[there].astype(np.float64)
        if self is Readout.MEAN_STD and len(rows):
            rows -= rows.mean(0)
            spread = rows.std(0)
            rows /= np.where(spread > 0, spread, 1.0)
        result[there] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return result

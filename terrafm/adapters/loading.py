"""Weights as every class of another tool takes them: described, and for images of whole patches."""

from __future__ import annotations

import os

from terrafm.errors import UsageError
from terrafm.models.contract import WeightsContract
from terrafm.models.encoder import Encoder
from terrafm.models.weights import load_encoder


def load_described(
    weights: str | os.PathLike[str], size: int | None
) -> tuple[Encoder, WeightsContract]:
    """The encoder in eval mode, and what it expects of its input.

    Args:
        weights: URI of exported weights.
        size: side of the images that it is to see, pixels, if that is known.

    Raises:
        UsageError: unreadable weights or ones without a contract, or a size that is not a
            multiple of the patch.
    """
    encoder = load_encoder(weights)
    if encoder.contract is None:
        raise UsageError(f"{weights} has no data contract: export it with terrafm export")
    if size is not None and (size < encoder.patch_size or size % encoder.patch_size):
        raise UsageError(f"a size of {size} pixels is no multiple of {encoder.patch_size}")
    return encoder, encoder.contract

"""The encoder as an encoder of PANGAEA, which trains decoders over frozen or fine-tuned ones.

Its configurations, one for each sensor and one for both, are written by
`terrafm export --format pangaea`. Data reaches it normalised with the statistics of the set, and
with zeros for bands that the set lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

from pangaea.encoders.base import Encoder
from torch import Tensor

from terrafm.adapters.loading import load_described
from terrafm.errors import UsageError


class TerraFMEncoder(Encoder):  # type: ignore[misc]
    """Images of one date to feature maps of stride 16.

    Args:
        encoder_weights: URI of weights with their contract.
        input_bands: PANGAEA's group ("optical", "sar") -> names of its bands.
        input_size: side of the images, pixels; a multiple of 16.
        output_layers: blocks counted from 0 whose maps are given.
        output_dim: channels of a map.
        modalities: PANGAEA's group -> the weights' modality.

    Raises:
        UsageError: unreadable weights or ones without a contract, a modality that they do not
            know, or a size that is not a multiple of the patch.
    """

    def __init__(
        self,
        encoder_weights: str | Path,
        input_bands: Mapping[str, Sequence[str]],
        input_size: int,
        output_layers: Sequence[int],
        output_dim: int,
        modalities: Mapping[str, str],
        download_url: str = "",
        **_: Any,
    ) -> None:
        encoder, contract = load_described(encoder_weights, input_size)
        for name in modalities.values():
            if name not in contract.modalities:
                known = ", ".join(contract.modalities)
                raise UsageError(f"{encoder_weights} was trained on {known}, not on {name}")
        super().__init__(
            model_name=contract.model,
            input_bands={group: list(bands) for group, bands in input_bands.items()},
            input_size=input_size,
            embed_dim=encoder.embed_dim,
            output_layers=list(output_layers),
            output_dim=output_dim,
            multi_temporal=False,
            multi_temporal_output=False,
            pyramid_output=False,
            encoder_weights=str(encoder_weights),
            download_url=download_url,
        )
        self.modalities = dict(modalities)
        self.encoder = encoder

    def load_encoder_weights(self, logger: Logger) -> None:
        """Does nothing: the weights state their architecture, so they are loaded to build it."""

    def forward(self, x: Mapping[str, Tensor]) -> list[Tensor]:
        """Feature maps.

        Args:
            x: group -> (B, C, H, W), or (B, C, 1, H, W), normalised.

        Returns:
            One (B, D, H / 16, W / 16) for each of `output_layers`.
        """
        pixels = {
            self.modalities[group]: images.squeeze(2) if images.ndim == 5 else images
            for group, images in x.items()
        }
        return self.encoder.forward_features(pixels, None, self.output_layers)

"""The encoder for one sensor, as the module beside an export loads it for torchgeo.

The module, `<model>_weights.py`, is written by `terrafm export --format torchgeo-bench`.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrafm.adapters.loading import load_described
from terrafm.errors import UsageError


class SensorEncoder(nn.Module):
    """Normalised images of one sensor (B, C, H, W) to embeddings (B, D), the CLS token.

    Args:
        weights: URI of weights with their contract.
        modality: the sensor, such as "s2_l1c".

    Raises:
        UsageError: unreadable weights, or weights of other sensors.
    """

    def __init__(self, weights: str, modality: str) -> None:
        super().__init__()
        self.encoder, contract = load_described(weights, None)
        if modality not in contract.modalities:
            known = ", ".join(contract.modalities)
            raise UsageError(f"{weights} knows {known}, not {modality}")
        self.modality = modality

    def forward(self, images: Tensor) -> Tensor:
        """Embeds normalised images."""
        embedding: Tensor = self.encoder(images, modality=self.modality)
        return embedding

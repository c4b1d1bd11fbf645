"""DINO's projection head: embeddings to prototype logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrafm.models.encoder import init_layers


class Prototypes(nn.Module):
    """Weight-normed linear map with unit gain: cosine similarity to K prototypes."""

    def __init__(self, bottleneck_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))

    def forward(self, x: Tensor, freeze: bool = False) -> Tensor:
        """Maps (n, bottleneck) to (n, K) in float32, whatever autocast says.

        With `freeze` the weight's gradient is exactly zero, but it is there: ZeRO waits for a
        gradient of every parameter.
        """
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.detach() + 0 * self.weight if freeze else self.weight
            return F.linear(F.normalize(x.float()), F.normalize(weight.float()))


class DINOHead(nn.Module):
    """MLP of 3 layers with GELU, L2 norm, prototypes (Caron et al., arXiv 2104.14294).

    Args:
        in_dim: width of an embedding.
        num_prototypes: K.
        hidden_dim: width of the MLP.
        bottleneck_dim: width before the prototypes.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last_layer = Prototypes(bottleneck_dim, num_prototypes)
        self.init_weights()

    def init_weights(self) -> None:
        """Sets every parameter: the MLP as `init_layers`, the prototypes as DINO.

        DINO leaves its last layer at nn.Linear's default, uniform within +-1 / sqrt(bottleneck);
        only the directions count, and only until the first step.
        """
        init_layers(self.mlp)
        nn.init.kaiming_uniform_(self.last_layer.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """Maps embeddings (n, in_dim) to logits (n, K) float32, cosines in [-1, 1].

        Args:
            x: embeddings.
            freeze_prototypes: give the prototypes a gradient of exactly zero.
        """
        logits: Tensor = self.last_layer(self.mlp(x), freeze_prototypes)
        return logits

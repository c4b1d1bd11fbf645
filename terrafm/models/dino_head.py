"""DINO's projection head: embeddings to prototype logits."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from terrafm.models.encoder import init_layers


class Prototypes(nn.Module):
    """Weight-normed linear map with unit gain: cosine similarity to K prototypes."""

    def __init__(self, bottleneck_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))

    def forward(self, x: Tensor, freeze: bool = False, directions: Tensor | None = None) -> Tensor:
        """Maps (n, bottleneck) to (n, K) in float32, whatever autocast says.

        With `freeze` the weight's gradient is exactly zero, but it is there: ZeRO waits for a
        gradient of every parameter. `directions` are those of the weight as it is, computed
        before; without gradient.
        """
        with torch.autocast(x.device.type, enabled=False):
            if directions is not None:
                return F.linear(F.normalize(x.float()), directions)
            cosines: Tensor = _Cosines.apply(x.float(), self.weight.float(), freeze)
            return cosines

    @torch.no_grad()
    def directions(self) -> Tensor:
        """The prototypes with norm 1, (K, bottleneck) float32."""
        return F.normalize(self.weight.float())


class _Cosines(torch.autograd.Function):
    """Cosines of the rows of x (n, D) and weight (K, D), (n, K).

    Autograd would keep the normed weight, 67 MB at K = 65,536, and take ten passes over it; here
    it is made anew in the backward pass.
    """

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, freeze: bool) -> Tensor:
        norms = [_norm(rows) for rows in (x, weight)]
        unit = x / norms[0]
        ctx.save_for_backward(unit, weight, *norms)
        ctx.freeze = freeze
        cosines: Tensor = unit @ (weight / norms[1]).t()
        return cosines

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, weight, norm, weight_norm = ctx.saved_tensors
        gradient, directions = gradients[0], weight / weight_norm
        inner = _tangent(gradient @ directions, unit, norm)
        if ctx.freeze:
            return inner, torch.zeros_like(weight), None
        return inner, _tangent(gradient.t() @ unit, directions, weight_norm), None


def _norm(rows: Tensor) -> Tensor:
    """(n, 1), bounded from below as in `torch.nn.functional.normalize`."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norm.clamp_min(1e-12)


def _tangent(gradient: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """Gradient in rows r of one in r / |r|, in its memory: what is along r has no effect."""
    along = torch.linalg.vecdot(gradient, unit).unsqueeze(1)
    across: Tensor = gradient.addcmul_(unit, along, value=-1).div_(norm)
    return across


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

    def forward(
        self, x: Tensor, freeze_prototypes: bool = False, directions: Tensor | None = None
    ) -> Tensor:
        """Maps embeddings (n, in_dim) to logits (n, K) float32, cosines in [-1, 1].

        Args:
            x: embeddings.
            freeze_prototypes: give the prototypes a gradient of exactly zero.
            directions: `last_layer.directions()`, where they are known; without gradient.
        """
        logits: Tensor = self.last_layer(self.mlp(x), freeze_prototypes, directions)
        return logits

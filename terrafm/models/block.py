"""A block of the vision transformer.

Parameters have the names and shapes of timm's `Block`, as the released weights have; torch alone
is imported, for timm brings its whole zoo and torchvision, which take longer to load than torch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, whose residual branches take a factor per image."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """Runs the block.

        Args:
            x: (B, 1 + N, D).
            scales: (2, B) factors of the attention and MLP branches, or None for 1.

        Returns:
            (B, 1 + N, D).
        """
        attended = self.attn(self.norm1(x))
        x = x + (attended if scales is None else attended * _per_image(scales[0], x))
        mixed = self.mlp(self.norm2(x))
        output: Tensor = x + (mixed if scales is None else mixed * _per_image(scales[1], x))
        return output


class Attention(nn.Module):
    """Multi-head self-attention, PyTorch's fused kernel where there is one for the device."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        images, tokens, dim = x.shape
        heads = self.qkv(x).reshape(images, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(images, tokens, dim))
        return projected


class Mlp(nn.Module):
    """Two layers with a GELU between them, four times as wide as the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mixed


def layer_norm(dim: int) -> nn.LayerNorm:
    """Of D channels, with the released weights' epsilon."""
    return nn.LayerNorm(dim, eps=1e-6)


def _per_image(scale: Tensor, like: Tensor) -> Tensor:
    """(B,) as a factor of (B, N, D)."""
    return scale.to(like.dtype).view(-1, 1, 1)

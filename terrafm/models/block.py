"""A block of the vision transformer.

Parameters have the names and shapes of timm's `Block`, as the released weights have; torch alone
is imported, for timm brings its whole zoo and torchvision, which take longer to load than torch.

Two operations keep less than autograd would, and launch less: GELU with the layer after it
(`GeluLinear`) and the scaled residual of stochastic depth. Compiled blocks go without them: there
the compiler decides what is kept and what is fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

MLP_RATIO = 4

Shape = Sequence[tuple[int, int]]
"""Images and tokens of each size, of which the rows of a sequence are made."""


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, whose residual branches take a factor per image."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim)

    def forward(
        self,
        x: Tensor,
        scales: Tensor | None = None,
        shape: Shape | None = None,
        cls_only: bool = False,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: (B, 1 + N, D); or (T, D) with `shape`, the tokens of images of several sizes.
            scales: (2, T, 1) factors of the attention and MLP branches of each row that is
                returned, or None for 1.
            shape: how the rows divide into images, each of which attends to itself.
            cls_only: compute the CLS token of each image alone. All tokens are attended to.

        Returns:
            As `x`, or (images, D) with `cls_only`.
        """
        attended = self.attn(self.norm1(x), shape, cls_only)
        if cls_only:
            x = cls_rows(x, shape)
        attention, mlp = (None, None) if scales is None else scales
        x = _residual(x, attended, attention)
        return _residual(x, self.mlp(self.norm2(x)), mlp)


class Qkv(nn.Linear):
    """Queries, keys and values; of some rows the queries alone.

    All go through `forward`, because ZeRO stage 3 gathers a module's partitioned weight only
    around its forward.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Any:
        """(..., D) to (..., 3 D); with `queries` (n, D) theirs (n, D), and the rest (..., 2 D)."""
        if queries is None:
            return F.linear(x, self.weight, self.bias)
        dim = x.shape[-1]
        query, rest = torch.split(self.weight, [dim, 2 * dim])
        query_bias, rest_bias = torch.split(self.bias, [dim, 2 * dim])
        return F.linear(queries, query, query_bias), F.linear(x, rest, rest_bias)


class Attention(nn.Module):
    """Multi-head self-attention, PyTorch's fused kernel where there is one for the device."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Qkv(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, shape: Shape | None = None, cls_only: bool = False) -> Tensor:
        """(..., D) to the same, or to (images, D); arguments as of `EncoderBlock.forward`."""
        rows = _shape_of(x, shape)
        if cls_only:
            query, rest = self.qkv(x, cls_rows(x, shape))
            queries = torch.split(query, [images for images, _ in rows])
            attended = [
                self._attend(q.unsqueeze(1), kv)
                for q, kv in zip(queries, _by_size(rest, rows), strict=True)
            ]
            return self._projected([each.flatten(0, 1) for each in attended])
        attended = [self._attend(None, part) for part in _by_size(self.qkv(x), rows)]
        if shape is not None:
            attended = [each.flatten(0, 1) for each in attended]
        return self._projected(attended)

    def _attend(self, query: Tensor | None, rest: Tensor) -> Tensor:
        """Of images of one size: queries (B, n, D) if apart, and the rest of (B, N, 3 D)."""
        images, tokens, width = rest.shape
        kinds = 3 if query is None else 2
        heads = (self.num_heads, width // kinds // self.num_heads)
        *apart, key, value = rest.reshape(images, tokens, kinds, *heads).permute(2, 0, 3, 1, 4)
        of = apart[0] if query is None else query.reshape(images, -1, *heads).transpose(1, 2)
        return F.scaled_dot_product_attention(of, key, value).transpose(1, 2).flatten(2)

    def _projected(self, attended: list[Tensor]) -> Tensor:
        projected: Tensor = self.proj(attended[0] if len(attended) == 1 else torch.cat(attended))
        return projected


class GeluLinear(nn.Linear):
    """A linear layer of GELU(x), which keeps x and not GELU(x) for the backward pass.

    Of what a block keeps, GELU(x) would be a fifth; to compute it again costs one pass over it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return F.linear(F.gelu(x), self.weight, self.bias)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        out: Tensor = _GeluLinear.apply(x, weight, bias)
        return out


class Mlp(nn.Module):
    """Two layers with a GELU between them, four times as wide as the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = GeluLinear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        mixed: Tensor = self.fc2(self.fc1(x))
        return mixed


def layer_norm(dim: int) -> nn.LayerNorm:
    """Of D channels, with the released weights' epsilon."""
    return nn.LayerNorm(dim, eps=1e-6)


def cls_rows(x: Tensor, shape: Shape | None) -> Tensor:
    """The first token of each image, (images, D); arguments as of `EncoderBlock.forward`."""
    first = [part[:, 0] for part in _by_size(x, _shape_of(x, shape))]
    return first[0] if len(first) == 1 else torch.cat(first)


def _shape_of(x: Tensor, shape: Shape | None) -> Shape:
    return [(x.shape[0], x.shape[1])] if shape is None else shape


def _by_size(x: Tensor, shape: Shape) -> list[Tensor]:
    """Rows (T, D) as (B, N, D) of each size; one size may have that form already."""
    if x.ndim == 3:
        return [x]
    parts = torch.split(x, [images * tokens for images, tokens in shape])
    return [part.view(*pair, -1) for part, pair in zip(parts, shape, strict=True)]


def _residual(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return x + branch
    if torch.compiler.is_compiling():
        return x + branch * scale
    scaled: Tensor = _ScaledResidual.apply(x, branch, scale)
    return scaled


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        rows = gradient.flatten(0, -2)
        weight_gradient = rows.t() @ F.gelu(x).flatten(0, -2)
        inner = torch.ops.aten.gelu_backward(gradient @ weight, x)
        return inner, weight_gradient, rows.sum(0)


class _ScaledResidual(torch.autograd.Function):
    """x + branch * scale with a branch in bfloat16, x and scale in float32.

    The sum is float32 without a float32 copy of the branch, and the branch's gradient is
    bfloat16 without a float32 copy of it: `out=` converts in the kernel, where autocast would
    convert before it. A scale in bfloat16 would shrink every branch by up to 0.4 %.
    """

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = branch.dtype
        return torch.addcmul(x, branch, scale, out=torch.empty_like(x))

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        gradient = gradients[0]
        branch = torch.empty_like(gradient, dtype=ctx.dtype)
        return gradient, torch.mul(gradient, scale, out=branch), None

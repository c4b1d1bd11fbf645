"""Pixels to tokens: one patch embedding per modality, then fusion and projection."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrafm.modalities import MODALITIES
from terrafm.models.fusion import Fusion, Projection
from terrafm.models.packing import Packed, pack_images, patchify

PATCH_SIZE = 16
IMAGE_SIZE = 224  # side of the image that pos_embed is laid out for

# The released state dict lists the modalities in this order.
_RELEASED_ORDER = ("s2_l2a", "s2_l1c", "s1")


class PatchLinear(nn.Conv2d):
    """A convolution whose kernels do not overlap, as one matrix product over unfolded patches.

    The weight is that of the released convolution, (D', C, S, S).
    """

    def forward(self, input: Tensor, vector: Tensor | None = None) -> Tensor:
        """Maps patches (..., C * S^2) to (..., D'), and adds a vector (1, D')."""
        assert self.bias is not None
        bias = self.bias if vector is None else self.bias + vector[0]
        return F.linear(input, self.weight.flatten(1), bias)


class PatchEmbed(nn.Module):
    """Patch embedding, modality vector, fusion and projection (method: f_m and case N).

    Args:
        embed_dim: D; a modality token has width D' = 3 D.
        patch_size: side of a patch, pixels.
        num_queries: fusion queries (N_q).
        others: sensors of other packages, beside the three that every encoder has.
    """

    def __init__(
        self, embed_dim: int, patch_size: int, num_queries: int, others: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.modalities = (*_RELEASED_ORDER, *sorted(others))
        self.patch_size = patch_size
        self.token_dim = token_dim = 3 * embed_dim
        for name in self.modalities:
            self.register_parameter(f"{name}_embed", nn.Parameter(torch.empty(1, token_dim)))
        for name in self.modalities:
            conv = PatchLinear(MODALITIES[name].channels, token_dim, patch_size, patch_size)
            self.add_module(f"conv2d_{name}", conv)
        self.projection = Projection(token_dim, embed_dim)
        self.fusion = Fusion(token_dim, num_queries)

    def modality_vectors(self) -> list[nn.Parameter]:
        """The vector of each modality, (1, D')."""
        return [self.get_parameter(f"{name}_embed") for name in self.modalities]

    def forward(
        self,
        pixels: Mapping[str, Tensor] | Packed,
        image: Mapping[str, Tensor] | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Tokens of a batch in which every image has its own set of modalities.

        Args:
            pixels: patches of images of several sizes; or modality -> (n_m, C_m, H, W), one H
                and W for all, multiples of the patch.
            image: modality -> (n_m,) int64, the image each row belongs to; None means that
                `pixels` has one modality and a row is an image (case N, nothing else is
                computed).
            size: number of images, needed with `image`.

        Returns:
            (P, D) of the packed patches, or (size, N, D) with N = H W / patch_size^2. Packed or
            with `image`, every parameter takes part in the result, those of absent modalities
            with zero rows, so that all of them always have a gradient.
        """
        if isinstance(pixels, Packed):
            tokens = self._fuse(pixels)
        elif image is None:
            ((name, images),) = pixels.items()
            tokens = self._embed(name, patchify(images, self.patch_size).flatten(3).flatten(1, 2))
        else:
            assert size is not None
            packed = pack_images(pixels, image, size, self.modalities, self.patch_size)
            tokens = self._fuse(packed).view(size, -1, self.token_dim)
        projected: Tensor = self.projection(tokens)
        return projected

    def _fuse(self, packed: Packed) -> Tensor:
        some = next(iter(packed.patches.values()))
        tokens = []
        for name in self.modalities:
            patches = packed.patches.get(name)
            if patches is None:
                length = MODALITIES[name].channels * self.patch_size**2
                patches = some.new_zeros((0, length))
            tokens.append(self._embed(name, patches))
        rows = [len(t) for t in tokens]
        token = torch.cat(tokens)
        position, slot = packed.place
        mixing = self.fusion(
            token, slot, (len(tokens), packed.positions), self.projection.proj1
        ).unsqueeze(1)
        weighted = torch.split(token * mixing.to(token.dtype), rows)
        fused = token.new_zeros((packed.positions, token.shape[1]))
        # One modality after the other: no position occurs twice in one, so that the order in
        # which a GPU adds does not show.
        for part, index in zip(weighted, torch.split(position, rows), strict=True):
            fused.index_add_(0, index, part)
        return fused

    def _embed(self, name: str, patches: Tensor) -> Tensor:
        vector = self.get_parameter(f"{name}_embed")
        tokens: Tensor = self.get_submodule(f"conv2d_{name}")(patches, vector)
        return tokens

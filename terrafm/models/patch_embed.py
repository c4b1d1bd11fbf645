"""Pixels to tokens: one patch embedding per modality, then fusion and projection."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from terrafm.modalities import MODALITIES
from terrafm.models.fusion import Fusion, Projection

PATCH_SIZE = 16
IMAGE_SIZE = 224  # side of the image that pos_embed is laid out for

# The released state dict lists the modalities in this order.
_RELEASED_ORDER = ("s2_l2a", "s2_l1c", "s1")


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
            conv = nn.Conv2d(MODALITIES[name].channels, token_dim, patch_size, patch_size)
            self.add_module(f"conv2d_{name}", conv)
        self.projection = Projection(token_dim, embed_dim)
        self.fusion = Fusion(token_dim, num_queries)

    def modality_vectors(self) -> list[nn.Parameter]:
        """The vector of each modality, (1, D')."""
        return [self.get_parameter(f"{name}_embed") for name in self.modalities]

    def forward(
        self,
        pixels: Mapping[str, Tensor],
        image: Mapping[str, Tensor] | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Tokens of a batch in which every image has its own set of modalities.

        Args:
            pixels: modality -> (n_m, C_m, H, W), one H and W for all, multiples of the patch.
            image: modality -> (n_m,) int64, the image each row belongs to; None means that
                `pixels` has one modality and a row is an image (case N, nothing else is
                computed).
            size: number of images, needed with `image`.

        Returns:
            (size, N, D) with N = H W / patch_size^2. With `image`, every parameter takes part
            in the result, those of absent modalities with zero rows, so that all of them
            always have a gradient.
        """
        if image is None:
            ((name, images),) = pixels.items()
            tokens = self._embed(name, images)
        else:
            assert size is not None
            tokens = self._fuse(pixels, image, size)
        projected: Tensor = self.projection(tokens)
        return projected

    def _fuse(self, pixels: Mapping[str, Tensor], image: Mapping[str, Tensor], size: int) -> Tensor:
        some = next(iter(pixels.values()))
        tokens, rows = [], []
        for name in self.modalities:
            absent = name not in pixels
            nothing = some.new_zeros((0, MODALITIES[name].channels, *some.shape[-2:]))
            tokens.append(self._embed(name, nothing if absent else pixels[name]))
            rows.append(image[next(iter(image))][:0] if absent else image[name])
        mixing = self.fusion(tokens, rows, size, self.projection.proj1)
        fused = tokens[0].new_zeros((size, *tokens[0].shape[1:]))
        for weight, token, index in zip(mixing, tokens, rows, strict=True):
            fused.index_add_(0, index, token * weight.unsqueeze(-1).to(token.dtype))
        return fused

    def _embed(self, name: str, x: Tensor) -> Tensor:
        patches: Tensor = self.get_submodule(f"conv2d_{name}")(x).flatten(2).transpose(1, 2)
        vector = self.get_parameter(f"{name}_embed")
        return patches + vector.to(patches.dtype)

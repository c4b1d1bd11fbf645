"""The TerraFM encoder: patch embedding and fusion, then a plain vision transformer.

Parameter names and shapes are those of the released weights; only training has
`patch_embed.fusion.*` besides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, SENTINEL, VARIABLE
from terrafm.models.block import EncoderBlock, layer_norm
from terrafm.models.drop_path import drop_path_scales
from terrafm.models.patch_embed import IMAGE_SIZE, PATCH_SIZE, PatchEmbed

if TYPE_CHECKING:
    from terrafm.models.contract import WeightsContract

INIT_STD = 0.02


@dataclass(frozen=True)
class Architecture:
    """Width D, number of blocks, number of heads."""

    embed_dim: int
    depth: int
    num_heads: int


def dense_blocks(depth: int) -> tuple[int, ...]:
    """Blocks whose maps dense tasks read, counted from 0: of 12 those that the released code reads.

    At a third, half, two thirds and all of the depth.
    """
    return tuple(max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3, 1.0))


ARCHITECTURES = {
    "terrafm_tiny": Architecture(96, 3, 3),  # for tests and demonstrations on a CPU
    "terrafm_small": Architecture(384, 12, 6),
    "terrafm_base": Architecture(768, 12, 12),
    "terrafm_large": Architecture(1024, 24, 16),
}


class Encoder(nn.Module):
    """TerraFM: images of one or several modalities to one embedding each.

    Args:
        architecture: width, depth, heads.
        drop_path: stochastic depth rate of the last block; linear in depth from 0.
        num_queries: fusion queries per position (N_q).
        others: sensors of other packages, beside the three that every encoder has.

    Attributes:
        activation_checkpointing: recompute each block's activations in the backward pass.
        fusion_loaded: false after weights without fusion parameters were loaded.
        contract: what the loaded weights expect of their input, if they say so.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        drop_path: float = 0.0,
        num_queries: int = 5,
        others: Sequence[str] = (),
    ) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.embed_dim = dim
        self.patch_size = PATCH_SIZE
        last = max(architecture.depth - 1, 1)
        self.drop_path_rates = [drop_path * block / last for block in range(architecture.depth)]
        self.activation_checkpointing = False
        self.fusion_loaded = True
        self.contract: WeightsContract | None = None
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2, dim))
        self.patch_embed = PatchEmbed(dim, PATCH_SIZE, num_queries, others)
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, architecture.num_heads) for _ in range(architecture.depth)
        )
        self.norm = layer_norm(dim)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Sets every parameter, as the released file does: see `init_layers`.

        Modality vectors start at 0. Position embedding, CLS token and the fusion's queries and
        readout, which belong to no layer: truncated normal 0.02.
        """
        init_layers(self)
        fusion = self.patch_embed.fusion
        for parameter in (self.pos_embed, self.cls_token, fusion.queries, fusion.readout):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for vector in self.patch_embed.modality_vectors():
            nn.init.zeros_(vector)

    def compile_blocks(self) -> None:
        """Compiles every block with torch.compile; names and values of parameters stay.

        Block by block: all blocks are one graph, compiled once for each batch shape, while the
        ragged patch embedding, whose shapes change from batch to batch, stays eager. A block's
        `forward` is compiled, not its call, so that hooks stay outside.
        """
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor],
        modality: str | None = None,
        *,
        image: Mapping[str, Tensor] | None = None,
        size: int | None = None,
        drop_path_key: Tensor | None = None,
        positions: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Embeds images: the normed CLS token.

        Args:
            x: (B, C, H, W) normalised pixels of one modality, or modality -> (B, C_m, H, W) of
                the same B places, which are fused. H and W are multiples of 16.
            modality: which one, where `x` is a tensor.
            image: see `forward_views`, which is this call with the remaining arguments.
            size: see `forward_views`.
            drop_path_key: see `forward_views`.
            positions: see `forward_views`.
            mask_token: see `forward_views`.

        Returns:
            (B, D), or (B + m, D) with m `positions`.

        Raises:
            ValueError: unknown modality, wrong number of bands, a size that is not a multiple
                of the patch, batches that differ between modalities, or NaN pixels.
        """
        if image is None:
            tokens = self._tokens(x, modality)
        else:
            assert isinstance(x, Mapping)
            patches = self.patch_embed(x, image, size)
            if positions is not None and mask_token is not None:
                patches = _replace(patches, positions, mask_token)
            tokens = self._prepend_cls(patches, _grid(x))
        scales = self._scales(drop_path_key)
        for block, scale in zip(self.blocks, scales, strict=True):
            tokens = self._run(block, tokens, scale)
        read = tokens[:, 0]
        if positions is not None:
            read = torch.cat([read, _patches_at(tokens, positions)])
        normed: Tensor = self.norm(read)
        return normed

    def forward_views(
        self,
        pixels: Mapping[str, Tensor],
        image: Mapping[str, Tensor],
        size: int,
        drop_path_key: Tensor | None = None,
        positions: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Embeds a training batch in which every image has its own set of modalities.

        Pixels are taken as they are: nothing is checked, so that no device is waited for.

        Args:
            pixels: modality -> (n_m, C_m, S, S) normalised; absent modalities may be left out.
            image: modality -> (n_m,) int64, the image that each row belongs to.
            size: number of images; each has at least one modality.
            drop_path_key: (size,) int64; keys of the stochastic depth masks, None for no drop.
            positions: (m,) int64, image * N + position: patches whose normed tokens are wanted
                too; each at most once.
            mask_token: (1, D) in place of what is seen at `positions`. It is put in after the
                fusion of modalities, so that nothing of any of them passes, and before the
                position embedding, so that the blocks know where it stands.

        Returns:
            (size, D) CLS tokens, then (m, D) patch tokens where `positions` are given. All
            parameters are in the graph, whatever was drawn.
        """
        # Through __call__, where ZeRO stage 3 has its hooks.
        views: Tensor = self(
            pixels,
            image=image,
            size=size,
            drop_path_key=drop_path_key,
            positions=positions,
            mask_token=mask_token,
        )
        return views

    def forward_features(
        self,
        x: Tensor | Mapping[str, Tensor],
        modality: str | None = None,
        out_indices: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Normed patch maps after chosen blocks, for dense tasks.

        Args:
            x: as in `forward`.
            modality: as in `forward`.
            out_indices: blocks counted from 0, negative from the end; by default the last.

        Returns:
            One (B, D, H / 16, W / 16) per index, in the order asked for.

        Raises:
            ValueError: as `forward`, or a block that does not exist.
        """
        depth = len(self.blocks)
        wanted = [-1] if out_indices is None else list(out_indices)
        if any(not -depth <= index < depth for index in wanted):
            raise ValueError(f"out_indices must be in 0..{depth - 1}, not {tuple(wanted)}")
        wanted = [index % depth for index in wanted]
        tokens = self._tokens(x, modality)
        height, width = _grid(x)
        maps = {}
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            tokens = self._run(block, tokens, None)
            if index in wanted:
                patches = self.norm(tokens)[:, 1:].transpose(1, 2)
                maps[index] = patches.reshape(*patches.shape[:2], height, width)
        return [maps[index] for index in wanted]

    def forward_tokens(
        self, x: Tensor | Mapping[str, Tensor], modality: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward` and `forward_features` give, in one pass.

        Args:
            x: as in `forward`.
            modality: as in `forward`.

        Returns:
            The normed CLS token (B, D), and the last patch map (B, D, H / 16, W / 16).

        Raises:
            ValueError: as `forward`.
        """
        tokens = self._tokens(x, modality)
        for block in self.blocks:
            tokens = self._run(block, tokens, None)
        normed = self.norm(tokens)
        patches = normed[:, 1:].transpose(1, 2)
        return normed[:, 0], patches.reshape(*patches.shape[:2], *_grid(x))

    def _tokens(self, x: Tensor | Mapping[str, Tensor], modality: str | None) -> Tensor:
        views = self._checked(x, modality)
        if len(views) == 1:
            return self._prepend_cls(self.patch_embed(views), _grid(views))
        if not self.fusion_loaded:
            warnings.warn(
                "the loaded weights have no fusion parameters: modalities are fused untrained",
                stacklevel=4,
            )
        some = next(iter(views.values()))
        rows = torch.arange(len(some), device=some.device)
        patches = self.patch_embed(views, dict.fromkeys(views, rows), len(some))
        return self._prepend_cls(patches, _grid(views))

    def _prepend_cls(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        cls = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding(*grid)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """The position embedding on a grid of patches, (1, 1 + height * width, D).

        Bicubic as in DINO, whose +0.1 on the target grid is part of the scale factor, and so
        of the sampling positions, in the released weights.
        """
        side = IMAGE_SIZE // PATCH_SIZE
        if (height, width) == (side, side):
            return self.pos_embed
        square = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        resized = F.interpolate(square, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def _scales(self, key: Tensor | None) -> Sequence[Tensor | None]:
        if key is None or not any(self.drop_path_rates):
            return [None] * len(self.blocks)
        return drop_path_scales(key, torch.tensor(self.drop_path_rates)).unbind(0)

    def _run(self, block: nn.Module, tokens: Tensor, scales: Tensor | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random: drop path comes as factors.
            result: Tensor = checkpoint(
                block, tokens, scales, use_reentrant=False, preserve_rng_state=False
            )
        else:
            result = block(tokens, scales)
        return result

    def _checked(
        self, x: Tensor | Mapping[str, Tensor], modality: str | None
    ) -> Mapping[str, Tensor]:
        known = ", ".join(self.patch_embed.modalities)
        if isinstance(x, Tensor):
            if modality is None:
                raise ValueError(f"say which modality the images are: one of {known}")
            x = {modality: x}
        elif modality is not None:
            raise ValueError("modality is for one tensor; a mapping names its own modalities")
        if not x:
            raise ValueError("no images: the mapping of modalities is empty")
        for name, images in x.items():
            if name not in self.patch_embed.modalities:
                raise ValueError(f"unknown modality {name!r}: one of {known}")
            channels = MODALITIES[name].channels
            if images.ndim != 4 or images.shape[1] != channels:
                raise ValueError(
                    f"{name} images must be (B, {channels}, H, W), bands "
                    f"{' '.join(MODALITIES[name].bands)}; these are {tuple(images.shape)}"
                )
            height, width = images.shape[2:]
            if min(height, width) < PATCH_SIZE or height % PATCH_SIZE or width % PATCH_SIZE:
                raise ValueError(
                    f"{name} images are {height} x {width} pixels: both sides must be "
                    f"multiples of {PATCH_SIZE}"
                )
            if not torch.compiler.is_compiling() and not torch.isfinite(images).all():
                raise ValueError(
                    f"{name} images hold NaN or infinite pixels: nodata is 0 after normalisation"
                )
        if len({(images.shape[0], *images.shape[2:]) for images in x.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in x.items())
            raise ValueError(f"modalities to fuse must agree in batch and size: {shapes}")
        return x


def build_encoder(
    name: str, *, drop_path: float = 0.0, num_queries: int = 5, modalities: Iterable[str] = ()
) -> Encoder:
    """An initialised encoder in training mode.

    Args:
        name: a key of `ARCHITECTURES`.
        drop_path: stochastic depth rate of the last block.
        num_queries: fusion queries per position.
        modalities: that it is to see. The paper's three it sees anyhow; those of other packages
            have parameters only where they stand here.

    Raises:
        UsageError: no such architecture, or no such sensor.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown model {name!r}: one of {', '.join(ARCHITECTURES)}")
    others = [modality for modality in modalities if modality not in SENTINEL]
    for other in others:
        if other not in MODALITIES:
            raise UsageError(
                f"unknown sensor {other}: install the package that brings it, or name it in "
                f"{VARIABLE} (docs/new_sensor.md)"
            )
    return Encoder(ARCHITECTURES[name], drop_path=drop_path, num_queries=num_queries, others=others)


@torch.no_grad()
def init_layers(module: nn.Module) -> None:
    """Sets the parameters of all layers of a module, as DINO and the released file do.

    Linear: weights truncated normal with standard deviation 0.02, cut at +-2, biases 0. LayerNorm:
    1 and 0. Conv2d: PyTorch's default, uniform within +-1 / sqrt(fan-in), so that a sensor of 2
    bands gives tokens as large as one of 12.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm | nn.Conv2d):
            layer.reset_parameters()


def _replace(patches: Tensor, positions: Tensor, token: Tensor) -> Tensor:
    """(B, N, D) with a token (1, D) at the flat positions (m,), none of them twice."""
    rows = token.to(patches.dtype).expand(len(positions), -1)
    return patches.flatten(0, 1).index_copy(0, positions, rows).view_as(patches)


def _patches_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """(m, D) of (B, 1 + N, D), by flat positions (m,) that do not count the CLS tokens."""
    before = positions // (tokens.shape[1] - 1) + 1
    return tokens.flatten(0, 1).index_select(0, positions + before)


def _grid(x: Tensor | Mapping[str, Tensor]) -> tuple[int, int]:
    images = x if isinstance(x, Tensor) else next(iter(x.values()))
    return images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE

"""The TerraFM encoder: patch embedding and fusion, then a plain vision transformer.

Parameter names and shapes are those of the released weights; only training has
`patch_embed.fusion.*` besides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, SENTINEL, VARIABLE
from terrafm.models.block import EncoderBlock, Shape, cls_rows, layer_norm
from terrafm.models.drop_path import drop_path_scales
from terrafm.models.packing import Grid, Packed, pack_images
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
        self._rates: Tensor | None = None
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

        Block by block: all blocks but the last, which computes CLS tokens alone, are one graph,
        compiled once for each batch shape, while the ragged patch embedding, whose shapes change
        from batch to batch, stays eager. A block's `forward` is compiled, not its call, so that
        hooks stay outside.
        """
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor] | Packed,
        modality: str | None = None,
        *,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Embeds images: the normed CLS token.

        Args:
            x: (B, C, H, W) normalised pixels of one modality, or modality -> (B, C_m, H, W) of
                the same B places, which are fused, H and W multiples of 16; or packed images of
                several sizes, see `forward_packed`.
            modality: which one, where `x` is a tensor.
            mask_token: see `forward_packed`.

        Returns:
            (B, D), of packed images (images + m, D) with m `masked` positions.

        Raises:
            ValueError: unknown modality, wrong number of bands, a size that is not a multiple
                of the patch, batches that differ between modalities, or NaN pixels.
        """
        positions = keys = None
        if isinstance(x, Packed):
            patches, grids = self.patch_embed(x), x.grids
            positions, keys = x.masked, x.drop_path_key
            if positions is not None and mask_token is not None:
                rows = mask_token.to(patches.dtype).expand(len(positions), -1)
                patches = patches.index_copy(0, positions, rows)
        else:
            patches, grids = self._patches(x, modality)
            patches = patches.flatten(0, 1)
        tokens, shape = self._sequence(patches, grids)
        read = self._blocks(tokens, shape, keys, whole=positions is not None)
        if positions is not None:
            chosen = read.index_select(0, _rows_of(positions, grids[0]))
            read = torch.cat([cls_rows(read, shape), chosen])
        normed: Tensor = self.norm(read)
        return normed

    def forward_packed(self, images: Packed, mask_token: Tensor | None = None) -> Tensor:
        """Embeds a training batch of all crop sizes in one pass.

        Pixels are taken as they are: nothing is checked, so that no device is waited for.

        Args:
            images: each has at least one modality.
            mask_token: (1, D) in place of what is seen at the masked positions. It is put in
                after the fusion of modalities, so that nothing of any of them passes, and before
                the position embedding, so that the blocks know where it stands.

        Returns:
            (images, D) CLS tokens, then (m, D) patch tokens where positions are masked. All
            parameters are in the graph, whatever was drawn.
        """
        # Through __call__, where ZeRO stage 3 has its hooks.
        embedded: Tensor = self(images, mask_token=mask_token)
        return embedded

    def forward_views(
        self,
        pixels: Mapping[str, Tensor],
        image: Mapping[str, Tensor],
        size: int,
        drop_path_key: Tensor | None = None,
        positions: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """`forward_packed` of images of one size.

        Args:
            pixels: modality -> (n_m, C_m, S, S) normalised; absent modalities may be left out.
            image: modality -> (n_m,) int64, the image that each row belongs to; on the CPU, or
                the device is waited for.
            size: number of images; each has at least one modality.
            drop_path_key: (size,) int64; keys of the stochastic depth masks, None for no drop.
            positions: (m,) int64, image * N + position: patches whose normed tokens are wanted
                too; each at most once.
            mask_token: see `forward_packed`.

        Returns:
            (size, D) CLS tokens, then (m, D) patch tokens where `positions` are given.
        """
        packed = pack_images(pixels, image, size, self.patch_embed.modalities, PATCH_SIZE)
        packed.drop_path_key, packed.masked = drop_path_key, positions
        return self.forward_packed(packed, mask_token)

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
            tokens = self._run(block, tokens)
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
            tokens = self._run(block, tokens)
        normed = self.norm(tokens)
        patches = normed[:, 1:].transpose(1, 2)
        return normed[:, 0], patches.reshape(*patches.shape[:2], *_grid(x))

    def _tokens(self, x: Tensor | Mapping[str, Tensor], modality: str | None) -> Tensor:
        """(B, 1 + N, D) before the first block."""
        patches, grids = self._patches(x, modality)
        tokens, _ = self._sequence(patches.flatten(0, 1), grids)
        return tokens.view(len(patches), -1, tokens.shape[-1])

    def _patches(
        self, x: Tensor | Mapping[str, Tensor], modality: str | None
    ) -> tuple[Tensor, Sequence[Grid]]:
        """Patch tokens (B, N, D) of checked images."""
        views = self._checked(x, modality)
        some = next(iter(views.values()))
        grids = [(some.shape[0], some.shape[-2] // PATCH_SIZE, some.shape[-1] // PATCH_SIZE)]
        if len(views) == 1:
            return self.patch_embed(views), grids
        if not self.fusion_loaded:
            warnings.warn(
                "the loaded weights have no fusion parameters: modalities are fused untrained",
                stacklevel=4,
            )
        rows = torch.arange(len(some))
        return self.patch_embed(views, dict.fromkeys(views, rows), len(some)), grids

    def _sequence(self, patches: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Shape]:
        """Patch tokens (P, D) with CLS tokens and positions, (T, D), image after image."""
        parts = torch.split(patches, [images * rows * columns for images, rows, columns in grids])
        sizes, shape = [], []
        for part, (images, height, width) in zip(parts, grids, strict=True):
            cls = self.cls_token.expand(images, -1, -1)
            tokens = torch.cat([cls, part.view(images, height * width, -1)], dim=1)
            sizes.append((tokens + self.position_embedding(height, width)).flatten(0, 1))
            shape.append((images, 1 + height * width))
        return sizes[0] if len(sizes) == 1 else torch.cat(sizes), tuple(shape)

    def _blocks(self, tokens: Tensor, shape: Shape, key: Tensor | None, whole: bool) -> Tensor:
        """(T, D) through all blocks: all tokens where the whole is wanted, or CLS tokens alone."""
        scales = self._scales(key)
        wide: Sequence[Tensor | None] = [None] * len(self.blocks)
        if scales is not None:
            sizes = torch.split(scales, [images for images, _ in shape], dim=2)
            pairs = zip(sizes, shape, strict=True)
            each = [s.expand(-1, -1, -1, tokens).flatten(2) for s, (_, tokens) in pairs]
            wide = torch.cat(each, dim=2).unsqueeze(-1).unbind(0)
        for block, scale in zip(self.blocks[:-1], wide, strict=False):
            tokens = self._run(block, tokens, scale, shape)
        if whole:
            return self._run(self.blocks[-1], tokens, wide[-1], shape)
        last = None if scales is None else scales[-1]
        return self._run(self.blocks[-1], tokens, last, shape, cls_only=True)

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

    def _scales(self, key: Tensor | None) -> Tensor | None:
        """(depth, 2, images, 1) factors of the residual branches; None where all are 1."""
        if key is None or not any(self.drop_path_rates):
            return None
        if self._rates is None or self._rates.device != key.device:
            self._rates = torch.tensor(self.drop_path_rates, device=key.device)
        return drop_path_scales(key, self._rates).unsqueeze(-1)

    def _run(
        self,
        block: nn.Module,
        tokens: Tensor,
        scales: Tensor | None = None,
        shape: Shape | None = None,
        cls_only: bool = False,
    ) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random: drop path comes as factors.
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            result: Tensor = checkpoint(block, tokens, scales, shape, cls_only, **options)
        else:
            result = block(tokens, scales, shape, cls_only)
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


def _rows_of(positions: Tensor, grid: Grid) -> Tensor:
    """Rows of a sequence with CLS tokens, of positions (m,) that do not count these."""
    return positions + positions // (grid[1] * grid[2]) + 1


def _grid(x: Tensor | Mapping[str, Tensor]) -> tuple[int, int]:
    images = x if isinstance(x, Tensor) else next(iter(x.values()))
    return images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE

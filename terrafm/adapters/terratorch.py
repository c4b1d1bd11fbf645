"""The encoder as a backbone of TerraTorch. Importing this module registers it.

TerraTorch's newest source has backbones `terrafm_base` and `terrafm_large` of its own, for the
released files; `terrafm_encoder` is this project's: every size, its weights files, its fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

from terrafm.models.encoder import Encoder, build_encoder, dense_blocks
from terrafm.models.weights import load_encoder


class TerraFMBackbone(nn.Module):
    """Images to a list of feature maps of stride 16.

    Args:
        encoder: any size.
        modality: of the images, where they come as one tensor.
        out_indices: blocks counted from 0, negative from the end; by default those at a third,
            half, two thirds and all of the depth.

    Attributes:
        out_channels: channels of each map.
        patch_size: to which TerraTorch pads images.
        contract: what the weights expect of their input, if they say so.
    """

    def __init__(
        self, encoder: Encoder, modality: str = "s2_l2a", out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.modality = modality
        indices = dense_blocks(len(encoder.blocks)) if out_indices is None else out_indices
        self.out_indices = tuple(indices)
        self.out_channels = [encoder.embed_dim] * len(self.out_indices)
        self.patch_size = encoder.patch_size
        self.contract = encoder.contract

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
        """Feature maps.

        Args:
            x: (B, C, H, W) pixels normalised with the contract's mean and std, or modality ->
                such pixels of the same places, which are fused.

        Returns:
            One (B, D, H / 16, W / 16) per index.

        Raises:
            ValueError: as `Encoder.forward_features`.
        """
        modality = self.modality if isinstance(x, Tensor) else None
        return self.encoder.forward_features(x, modality, self.out_indices)


@TERRATORCH_BACKBONE_REGISTRY.register  # type: ignore[untyped-decorator]
def terrafm_encoder(
    ckpt_path: str | None = None,
    pretrained: bool = True,
    modality: str = "s2_l2a",
    out_indices: Sequence[int] | None = None,
    model: str = "terrafm_base",
) -> TerraFMBackbone:
    """Builds the backbone; in a TerraTorch configuration its arguments begin with `backbone_`.

    Args:
        ckpt_path: URI of weights, exported or released.
        pretrained: load them. False gives fresh weights of `model`, as TerraTorch wants where it
            loads a whole fine-tuned model afterwards.
        modality: of the images.
        out_indices: as in `TerraFMBackbone`.
        model: architecture where nothing is loaded; weights say their own.

    Raises:
        ValueError: `pretrained` without weights, or a modality that they were not trained on.
        UsageError: unreadable weights, or an unknown model.
    """
    if not pretrained:
        return TerraFMBackbone(build_encoder(model), modality, out_indices)
    if ckpt_path is None:
        raise ValueError("terrafm_encoder: give ckpt_path, or pretrained=False for fresh weights")
    encoder = load_encoder(ckpt_path)
    known = None if encoder.contract is None else encoder.contract.modalities
    if known is not None and modality not in known:
        raise ValueError(f"{ckpt_path} was trained on {', '.join(known)}, not on {modality}")
    # Nothing in it differs between the modes, but Lightning warns of modules in eval mode.
    return TerraFMBackbone(encoder, modality, out_indices).train()

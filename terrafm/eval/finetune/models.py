"""An encoder with a head, as timm's layer-wise learning rates want it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from terrafm.eval.segmentation.patch_maps import pyramid_blocks
from terrafm.eval.segmentation.upernet import UPerNet
from terrafm.models.encoder import INIT_STD, Encoder

# As in pretraining; timm leaves out what has one dimension by itself.
NO_WEIGHT_DECAY = (
    *("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.*_embed"),
    *("encoder.patch_embed.fusion.queries", "encoder.patch_embed.fusion.readout"),
)


class _Layered(nn.Module):
    """Says which layer a parameter belongs to, counted from the input."""

    encoder: Encoder

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as in BEiT and MAE: embeddings, each block, then the last norm and the head.

        Args:
            coarse: as timm asks it; there is one answer.
        """
        return {
            "embeddings": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None)],
        }


class Classifier(_Layered):
    """The encoder and a linear layer on its CLS token."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        """Draws the head from torch's global generator.

        Args:
            encoder: trained in place.
            classes: number of classes C.
        """
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch.

        Args:
            pixels: modality -> (n_m, C_m, S, S).
            places: modality -> (n_m,) the image of each row.

        Returns:
            (B, C).
        """
        size = 1 + max(int(rows.max()) for rows in places.values())
        if all(len(rows) == size for rows in places.values()):
            tokens = self.encoder(pixels)
        else:
            tokens = self.encoder.forward_views(pixels, places, size)
        logits: Tensor = self.head(tokens)
        return logits


class Segmenter(_Layered):
    """The encoder and UPerNet on four of its blocks."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        """Draws UPerNet from torch's global generator.

        Args:
            encoder: trained in place.
            classes: number of classes C.

        Raises:
            UsageError: UPerNet's library is not installed.
        """
        super().__init__()
        self.encoder = encoder
        self.blocks = pyramid_blocks(len(encoder.blocks))
        self.head = UPerNet(encoder.embed_dim, classes)

    def forward(self, pixels: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Logits of every pixel.

        Args:
            pixels: modality -> (B, C_m, S, S).
            shape: height and width of the logits, pixels.

        Returns:
            (B, C, H, W).
        """
        logits: Tensor = self.head(self.encoder.forward_features(pixels, None, self.blocks), shape)
        return logits

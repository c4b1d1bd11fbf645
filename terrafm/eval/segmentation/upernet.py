"""UPerNet on the patch maps of four blocks (Xiao et al. 2018), as BEiT puts it on a plain ViT.

A plain ViT has one resolution: transposed convolutions and a maximum make 4, 2, 1 and 1/2 times
it of the four maps, and segmentation_models_pytorch's decoder does the rest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.segmentation.probes import ProbeRecipe
from terrafm.models.patch_embed import PATCH_SIZE

LEVELS = 4
# Channels of the decoder: mmsegmentation's and segmentation_models_pytorch's default are 512, 256.
WIDTH = 256
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
WEIGHT_DECAY = 0.05
# The coarsest level is half of the patch grid.
SMALLEST = 2 * PATCH_SIZE
# The decoder counts levels from the image's own resolution and leaves out the two finest.
_LEFT_OUT = 2


def recipe(epochs: int) -> ProbeRecipe:
    """How the frozen encoder's UPerNet is fitted."""
    return ProbeRecipe(LEARNING_RATES, epochs, WEIGHT_DECAY)


def check_upernet(size: int, training_images: int) -> None:
    """Whether UPerNet can be used, before anything is computed for it.

    Args:
        size: side of the images, pixels.
        training_images: how many.

    Raises:
        UsageError: the library is missing, images are too small, or there is one image.
    """
    _decoder()
    if size < SMALLEST:
        raise UsageError(f"UPerNet needs images of {SMALLEST} pixels or more, not {size}: --size")
    if training_images < 2:
        raise UsageError("UPerNet needs two or more training images: it normalises over a batch")


class UPerNet(nn.Module):
    """A pyramid of four patch maps, UPerNet's decoder, and a linear layer to the classes."""

    def __init__(self, dim: int, classes: int, width: int | None = None) -> None:
        """Draws its weights from torch's global generator.

        Args:
            dim: width D of the patch maps.
            classes: number of classes C.
            width: channels of the decoder; by default `WIDTH`.

        Raises:
            UsageError: segmentation_models_pytorch is not installed.
        """
        super().__init__()
        width = WIDTH if width is None else width
        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(_twice(dim), nn.BatchNorm2d(dim), nn.GELU(), _twice(dim)),
                _twice(dim),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.decoder = _decoder()(
            [0] * _LEFT_OUT + [dim] * LEVELS,
            encoder_depth=LEVELS + _LEFT_OUT - 1,
            decoder_channels=width,
        )
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Tensor | Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        """Logits of every pixel.

        Args:
            maps: (B, 4, D, h, w), or four of (B, D, h, w); of early blocks first.
            shape: height and width of the logits, pixels.

        Returns:
            (B, C, H, W).
        """
        levels = maps.unbind(1) if isinstance(maps, Tensor) else maps
        scaled = [scale(level) for scale, level in zip(self.pyramid, levels, strict=True)]
        fine = self.classify(self.decoder([scaled[0]] * _LEFT_OUT + scaled))
        return functional.interpolate(fine, size=shape, mode="bilinear", align_corners=False)


def _twice(dim: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, dim, 2, stride=2)


def _decoder() -> type[torch.nn.Module]:
    try:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ImportError:
        raise UsageError(
            "UPerNet comes from segmentation_models_pytorch, which is not installed: "
            "pip install 'terrafm[eval]'"
        ) from None
    decoder: type[torch.nn.Module] = UPerNetDecoder
    return decoder

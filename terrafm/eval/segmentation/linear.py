"""The linear probe on patches: one linear layer on the last block's patch map, upsampled.

As GEO-Bench's and DINO's linear segmentation: standardised patch features, a 1 x 1 convolution
to the classes, bilinear upsampling to the mask.
"""

from torch import Tensor, nn
from torch.nn import functional

from terrafm.eval.segmentation.probes import ProbeRecipe

RECIPE = ProbeRecipe(learning_rates=(1e-3, 1e-2, 1e-1), epochs=50, weight_decay=1e-4)


class PatchProbe(nn.Module):
    """A linear layer on standardised patch features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, classes: int) -> None:
        """Starts at zero: the loss is convex, any start will do, and this one needs no seed.

        Args:
            mean: (D, 1, 1) of the features that it is fitted on.
            scale: (D, 1, 1) their standard deviations.
            classes: number of classes C.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.layer = nn.Conv2d(len(mean), classes, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, 1, D, h, w) patch features to (B, C, H, W) logits."""
        low: Tensor = self.layer((maps[:, 0] - self.mean) / self.scale)
        return functional.interpolate(low, size=shape, mode="bilinear", align_corners=False)

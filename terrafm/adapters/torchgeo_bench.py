"""The encoder as a model of torchgeo-bench (0.4), which scores frozen encoders.

Its configuration, one file of YAML for the weights, is written by
`terrafm export --format torchgeo-bench`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models.interface import BenchModel

from terrafm.adapters.loading import load_described
from terrafm.adapters.named_bands import NamedBands, whole_patches
from terrafm.errors import UsageError
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import FIRST_CHOICE

_LOG = logging.getLogger(__name__)
_NATIVE = "model_native"


class TerraFMBench(BenchModel):  # type: ignore[misc]
    """Raw images of a set, with all bands that it has, to embeddings.

    With `dataset.normalization=model_native` raw values become reflectance or dB and are
    normalised with the statistics of the weights' training; every other choice is the benchmark's
    own and takes the statistics of the set. Bands that the set lacks are 0 after normalisation;
    several sensors are fused where the weights have fusion parameters.

    Args:
        bands: the set's, given by the benchmark.
        weights: URI of weights with their contract.
        modalities: only these, such as ["s2_l1c"]; by default all that weights and set have in
            common, of Sentinel-2 Level-1C where the set has the cirrus band, else Level-2A.
        readout: "cls", "mean" or "mean+std" (`terrafm.eval.Readout`).
        size: side to which images are resized, pixels; by default as they come, enlarged to
            whole patches.
        normalization: given by the benchmark.

    Attributes:
        backbone: the encoder; layers for segmentation are its "blocks.0" to the last.

    Raises:
        UsageError: weights without a contract, no band in common, an unknown readout, or a size
            that is not a multiple of the patch.
    """

    def __init__(
        self,
        bands: Sequence[BandSpec],
        *,
        weights: str,
        modalities: Sequence[str] | None = None,
        readout: str = Readout.CLS,
        size: int | None = None,
        normalization: str = _NATIVE,
        **_: Any,
    ) -> None:
        # The statistics of the weights' training are known to `normalize_inputs` below alone.
        self._is_native = normalization == _NATIVE
        super().__init__(
            bands=list(bands), normalization="identity" if self._is_native else normalization
        )
        if readout not in list(Readout):
            raise UsageError(f"readout {readout!r}: one of {', '.join(Readout)}")
        encoder, contract = load_described(weights, size)
        self.backbone = encoder
        self.readout = Readout(readout)
        self.size = size
        self.named = NamedBands(self.bands, contract, modalities)
        if len(self.named.channels) > 1 and not encoder.fusion_loaded:
            first = next(name for name in FIRST_CHOICE if name in self.named.channels)
            _LOG.warning("the weights have no fusion parameters: only %s is taken", first)
            self.named = NamedBands(self.bands, contract, [first])
        _LOG.info("%s: %s", weights, self.named.describe())

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Normalises raw values (B, C, H, W), channel by channel."""
        if self._is_native:
            return self.named.normalised(images)
        normalised: Tensor = super().normalize_inputs(images)
        return normalised

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Embeds normalised images (B, C, H, W): (B, K) float32."""
        pixels = whole_patches(self.named.arranged(images), self.backbone.patch_size, self.size)
        # All tokens of all blocks: hooks of a segmentation probe read them.
        return self.readout.of_tokens(*self.backbone.forward_tokens(pixels))

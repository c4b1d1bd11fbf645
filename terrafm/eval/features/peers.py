"""Encoders of other projects as rows of a comparison.

`timm:NAME` or `timm:NAME@URI`. The checkpoint's first layer decides what the model sees. Three
channels: B04, B03 and B02 as a picture, reflectance 0 to 0.3 as 0 to 1, then the model's own mean
and std. As many channels as the modality has bands: all of them in model order, standardised by
the set. Anything else is refused.

`torchgeo:WEIGHTS` or `torchgeo:WEIGHTS@URI`: the bands and the normalisation that torchgeo states.

`untrained:NAME`: one of timm's models with fresh weights, all bands, standardised by the set. It
stands for what an architecture does without any weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.encoders import TIMM, TORCHGEO, UNTRAINED, InputOptions, Row
from terrafm.eval.features.extraction import UNTRAINED_SEEDS, batches
from terrafm.eval.features.job import Features, MakeFeatures, extract_features
from terrafm.eval.features.peer_models import TorchgeoWeights, fresh_model, timm_model
from terrafm.modalities import MODALITIES, OPTICAL
from terrafm.models.weights import state_fingerprint
from terrafm.storage import absolute

PICTURE_BANDS = ("B04", "B03", "B02")
# Brightest reflectance of a picture: as quick looks are stretched.
BRIGHTEST = 0.3
# Reflectance of one of Sentinel-2's digital numbers.
_DIGITAL_NUMBER = 1e-4


def peer_rows(name: str, images: ImageSet, inputs: InputOptions) -> list[Row]:
    """The rows of one other encoder: one, or of an untrained one one for each seed.

    Args:
        name: as this module says; a checkpoint is safetensors, or a `.pth` of tensors.
        images: the set.
        inputs: how it is looked at; the side is the model's own.

    Raises:
        UsageError: no such model, weights that cannot be read or do not fit it, or channels that
            the modality has not.
    """
    if len(inputs.modalities) > 1:
        raise UsageError(f"{name} sees one modality, not {', '.join(inputs.modalities)}")
    (modality,) = inputs.modalities
    if name.startswith(UNTRAINED):
        return _untrained_rows(name, modality, images, inputs)
    if name.startswith(TORCHGEO):
        return [_torchgeo_row(name, modality, images, inputs)]
    return [_timm_row(name, modality, images, inputs)]


def _timm_row(name: str, modality: str, images: ImageSet, inputs: InputOptions) -> Row:
    architecture, _, uri = name.removeprefix(TIMM).partition("@")
    uri = absolute(uri) if uri else uri
    model, channels = timm_model(architecture, uri)
    sensor = MODALITIES[modality]
    depends_on = {"row": f"{TIMM}{architecture}", "timm": timm.__version__}
    load = partial(_timm_alone, architecture, uri)
    if channels == sensor.channels:
        looks = _standardised(modality, images)
        return _row(name, modality, model, load, looks, depends_on, images, inputs)
    if channels != len(PICTURE_BANDS) or not set(PICTURE_BANDS) <= set(sensor.bands):
        raise UsageError(
            f"{name} takes {channels} channels: neither a picture (B04 B03 B02) nor the "
            f"{sensor.channels} bands of {modality}"
        )
    config = timm.data.resolve_model_data_config(model)
    # ((x / brightest clipped to 0..1) - mean) / std, as one normalisation of reflectance.
    looks = _Looks(
        {"mean": [0.0] * sensor.channels, "std": [BRIGHTEST] * sensor.channels},
        tuple(sensor.bands.index(band) for band in PICTURE_BANDS),
        tuple(float(value) for value in config["mean"]),
        tuple(float(value) for value in config["std"]),
        f"{' '.join(PICTURE_BANDS)}, reflectance 0 to {BRIGHTEST} as a picture",
        is_picture=True,
    )
    return _row(name, modality, model, load, looks, depends_on, images, inputs)


def _untrained_rows(name: str, modality: str, images: ImageSet, inputs: InputOptions) -> list[Row]:
    architecture = name.removeprefix(UNTRAINED)
    channels = MODALITIES[modality].channels
    looks = _standardised(modality, images)
    rows = []
    for seed in UNTRAINED_SEEDS:
        load = partial(fresh_model, architecture, channels, seed)
        depends_on = {"row": name, "timm": timm.__version__, "seed": seed}
        title = f"untrained {architecture} (seed {seed})"
        row = _row(title, modality, load(), load, looks, depends_on, images, inputs)
        family = f"untrained {architecture}, {len(UNTRAINED_SEEDS)} seeds"
        rows.append(replace(row, family=family))
    return rows


def _torchgeo_row(name: str, modality: str, images: ImageSet, inputs: InputOptions) -> Row:
    known, _, uri = name.removeprefix(TORCHGEO).partition("@")
    uri = absolute(uri) if uri else uri
    weights = TorchgeoWeights.named(known)
    if modality not in OPTICAL:
        raise UsageError(f"{name} sees Sentinel-2, not {modality}: --modality s2_l1c or s2_l2a")
    sensor = MODALITIES[modality]
    absent = [band for band in weights.bands if band not in sensor.bands]
    seen = f"{' '.join(weights.bands)}, normalised as torchgeo states"
    if absent:
        seen += f"; {', '.join(absent)}, which is not read here, is 0"
    looks = _Looks(
        {"mean": [0.0] * sensor.channels, "std": [_DIGITAL_NUMBER] * sensor.channels},
        # One past the last band is a band of zeros.
        tuple(
            sensor.bands.index(band) if band in sensor.bands else sensor.channels
            for band in weights.bands
        ),
        weights.mean,
        weights.std,
        seen,
    )
    depends_on = {"row": f"{TORCHGEO}{known}", "timm": timm.__version__}
    load = partial(weights.load, uri)
    return _row(name, modality, load(), load, looks, depends_on, images, inputs)


@dataclass(frozen=True)
class _Looks:
    """How a model sees a modality.

    Attributes:
        statistics: {"mean", "std"} of all bands, by which pixels are normalised first.
        take: which bands the model sees; one past the last is a band of zeros.
        mean: of those, after that.
        std: as `mean`.
        seen: for the reader.
        is_picture: clip to 0..1 before the second normalisation.
    """

    statistics: Mapping[str, Any]
    take: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seen: str
    is_picture: bool = False


def _standardised(modality: str, images: ImageSet) -> _Looks:
    sensor = MODALITIES[modality]
    found = images.statistics()[modality]
    return _Looks(
        {key: [float(value) for value in found[key]] for key in ("mean", "std")},
        tuple(range(sensor.channels)),
        (0.0,) * sensor.channels,
        (1.0,) * sensor.channels,
        f"{' '.join(sensor.bands)}, standardised by the set",
    )


def _row(
    title: str, modality: str, model: nn.Module, load: Callable[[], nn.Module], looks: _Looks,
    depends_on: Mapping[str, Any], images: ImageSet, inputs: InputOptions,
) -> Row:  # fmt: skip
    side = int(timm.data.resolve_model_data_config(model)["input_size"][-1])
    fingerprint = state_fingerprint(model)
    extractor = PeerFeatures(title, load, fingerprint, modality, looks, side, inputs.batch)
    depends_on = {
        **depends_on,
        "weights": fingerprint,
        "modalities": [modality],
        "size": side,
        "seen": looks.seen,
        "normalisation": dict(looks.statistics),
    }
    return Row(
        title,
        f"{looks.seen}, {side} pixels",
        dict(depends_on),
        lambda parts: extract_features(extractor, images, inputs.device, inputs.workers, parts),
        replace(inputs, size=side),
    )


@dataclass(frozen=True)
class PeerFeatures:
    """Features of a model without its classifier, of unit length.

    Attributes:
        title: of its row.
        load: makes the model; travels to workers.
        fingerprint: of its weights: others are refused.
        modality: that it sees.
        looks: and how.
        side: to which images are resized, pixels.
        batch: images at once.
    """

    title: str
    load: Callable[[], nn.Module]
    fingerprint: str
    modality: str
    looks: _Looks
    side: int
    batch: int

    def open(self, device: torch.device) -> MakeFeatures:
        """Loads the model.

        Raises:
            UsageError: its weights cannot be read or are others than before.
        """
        model = self.load()
        if state_fingerprint(model) != self.fingerprint:
            raise UsageError(f"weights of {self.title} changed while they were used")
        model = model.to(device)
        torch.backends.cudnn.allow_tf32 = False

        @torch.inference_mode()
        def make(images: ImageSet, rows: Sequence[int]) -> Features:
            found: Features | None = None
            normalisation = {self.modality: self.looks.statistics}
            for at, pixels in batches(
                images, (self.modality,), normalisation, self.side, self.batch, rows
            ):
                if self.modality not in pixels:
                    continue
                seen = self._prepare(pixels[self.modality].to(device))
                tokens = functional.normalize(model(seen).float())
                if found is None:
                    found = np.zeros((len(rows), tokens.shape[-1]), np.float32)
                found[at] = tokens.cpu().numpy()
            if found is None:
                # None of these rows; whether none of the whole set, the table sees.
                return np.zeros((len(rows), cast(int, model.head_hidden_size)), np.float32)
            return found

        return make

    def _prepare(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) of all bands to what the model takes."""
        take = self.looks.take
        if max(take) == pixels.shape[1]:
            pixels = functional.pad(pixels, (0, 0, 0, 0, 0, 1))
        pixels = pixels[:, list(take)]
        if self.looks.is_picture:
            pixels = pixels.clamp(0, 1)
        mean, std = (
            pixels.new_tensor(values).view(1, -1, 1, 1)
            for values in (self.looks.mean, self.looks.std)
        )
        return (pixels - mean) / std


def _timm_alone(architecture: str, uri: str) -> nn.Module:
    return timm_model(architecture, uri)[0]

"""Encoders of timm as rows of a comparison: `timm:NAME`, or `timm:NAME@URI` with a checkpoint.

The checkpoint's first layer decides what the model sees. Three channels: B04, B03 and B02 as a
picture, reflectance 0 to 0.3 as 0 to 1, then the model's own mean and std. As many channels as the
modality has bands: all of them in model order, standardised by the set. Anything else is refused.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.encoders import TIMM, InputOptions, Row
from terrafm.eval.features.extraction import batches
from terrafm.eval.features.job import Features, MakeFeatures, extract_features
from terrafm.modalities import MODALITIES
from terrafm.models.claims import check_weights
from terrafm.models.weights import state_fingerprint
from terrafm.storage import absolute, download, exists, read_bytes
from terrafm.storage.faults import one_line
from terrafm.storage.limits import WHOLE_FILE_BYTES

PICTURE_BANDS = ("B04", "B03", "B02")
# Brightest reflectance of a picture: as quick looks are stretched.
BRIGHTEST = 0.3


def timm_row(name: str, images: ImageSet, inputs: InputOptions) -> Row:
    """A row of one of timm's models.

    Args:
        name: `timm:NAME` for the weights that timm publishes, `timm:NAME@URI` for a checkpoint
            (safetensors, or a `.pth` of tensors) of that architecture.
        images: the set.
        inputs: how it is looked at; the side is the model's own.

    Raises:
        UsageError: no such model, weights that cannot be read or do not fit it, or channels that
            are neither a picture nor the modality's bands.
    """
    if len(inputs.modalities) > 1:
        raise UsageError(f"{name} sees one modality, not {', '.join(inputs.modalities)}")
    (modality,) = inputs.modalities
    architecture, _, uri = name.removeprefix(TIMM).partition("@")
    uri = absolute(uri) if uri else uri
    model, channels = _load(architecture, uri)
    config = timm.data.resolve_model_data_config(model)
    side = int(config["input_size"][-1])
    sensor = MODALITIES[modality]
    if channels == len(PICTURE_BANDS) and set(PICTURE_BANDS) <= set(sensor.bands):
        take = [sensor.bands.index(band) for band in PICTURE_BANDS]
        mean, std = np.asarray(config["mean"]), np.asarray(config["std"])
        # ((x / brightest clipped to 0..1) - mean) / std, as one normalisation of reflectance.
        statistics = {"mean": _all(0.0, sensor.channels), "std": _all(BRIGHTEST, sensor.channels)}
        seen = f"{' '.join(PICTURE_BANDS)}, reflectance 0 to {BRIGHTEST} as a picture"
    elif channels == sensor.channels:
        take = list(range(channels))
        mean, std = np.zeros(channels), np.ones(channels)
        statistics = images.statistics()[modality]
        seen = f"{' '.join(sensor.bands)}, standardised by the set"
    else:
        raise UsageError(
            f"{name} takes {channels} channels: neither a picture (B04 B03 B02) nor the "
            f"{sensor.channels} bands of {modality}"
        )
    fingerprint = state_fingerprint(model)
    extractor = TimmFeatures(
        architecture,
        uri,
        fingerprint,
        modality,
        {key: [float(v) for v in statistics[key]] for key in ("mean", "std")},
        tuple(take),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        channels == len(PICTURE_BANDS) and channels != sensor.channels,
        side,
        inputs.batch,
    )
    depends_on = {
        "row": f"{TIMM}{architecture}",
        "timm": timm.__version__,
        "weights": fingerprint,
        "modalities": [modality],
        "size": side,
        "seen": seen,
        "normalisation": dict(extractor.statistics),
    }
    return Row(
        name,
        f"{seen}, {side} pixels",
        depends_on,
        lambda parts: extract_features(extractor, images, inputs.device, inputs.workers, parts),
        replace(inputs, size=side),
    )


def _all(value: float, count: int) -> list[float]:
    return [value] * count


@dataclass(frozen=True)
class TimmFeatures:
    """Features of one of timm's models, of unit length.

    Attributes:
        architecture: timm's name.
        uri: of a checkpoint; empty for the weights that timm publishes.
        fingerprint: of the weights: others are refused.
        modality: that it sees.
        statistics: {"mean", "std"} of all bands, by which pixels are normalised first.
        take: which bands it sees.
        mean: of those, after that.
        std: as `mean`.
        picture: clip to 0..1 before that.
        side: to which images are resized, pixels.
        batch: images at once.
    """

    architecture: str
    uri: str
    fingerprint: str
    modality: str
    statistics: Mapping[str, Any]
    take: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    picture: bool
    side: int
    batch: int

    def open(self, device: torch.device) -> MakeFeatures:
        """Loads the model.

        Raises:
            UsageError: its weights cannot be read or are others than before.
        """
        model, _ = _load(self.architecture, self.uri)
        if state_fingerprint(model) != self.fingerprint:
            raise UsageError(f"weights of {self.architecture} changed while they were used")
        model = model.to(device)
        torch.backends.cudnn.allow_tf32 = False

        @torch.inference_mode()
        def make(images: ImageSet, rows: Sequence[int]) -> Features:
            found: Features | None = None
            normalisation = {self.modality: self.statistics}
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
        pixels = pixels[:, list(self.take)]
        if self.picture:
            pixels = pixels.clamp(0, 1)
        shape = (1, len(self.take), 1, 1)
        return (pixels - pixels.new_tensor(self.mean).view(shape)) / pixels.new_tensor(
            self.std
        ).view(shape)


def _load(architecture: str, uri: str) -> tuple[nn.Module, int]:
    """The model in eval mode, and the channels that it takes."""
    model, channels = _from_file(architecture, uri) if uri else _published(architecture)
    return model.eval(), channels


def _published(architecture: str) -> tuple[nn.Module, int]:
    _check_name(architecture)
    try:
        model = timm.create_model(architecture, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        reason = one_line(error)
        raise UsageError(
            f"timm cannot give the weights of {architecture}: {reason}; name a checkpoint with "
            f"{TIMM}{architecture}@URI"
        ) from None
    return model, _first_channels(model.state_dict(), model)


def _from_file(architecture: str, uri: str) -> tuple[nn.Module, int]:
    _check_name(architecture)
    state = _read_state(uri)
    probe = timm.create_model(architecture, pretrained=False, num_classes=0)
    channels = _first_channels(state, probe, uri)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, in_chans=channels)
    head = _config(model).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"checkpoint {uri} does not fit {architecture}: {reason}") from None
    return model, channels


def _check_name(architecture: str) -> None:
    if not timm.is_model(architecture.split(".")[0]):
        raise UsageError(f"timm {timm.__version__} has no model {architecture!r}")


def _first_channels(state: Mapping[str, Tensor], model: nn.Module, uri: str = "timm") -> int:
    first = _config(model).get("first_conv")
    name = f"{first if isinstance(first, str) else first[0] if first else ''}.weight"
    if name not in state:
        raise UsageError(f"checkpoint {uri} has no first layer {name}")
    return int(state[name].shape[1])


def _config(model: nn.Module) -> Mapping[str, Any]:
    """What timm states of a model: names of its first and last layer, size, mean and std."""
    return cast(Mapping[str, Any], model.pretrained_cfg)


def _read_state(uri: str) -> dict[str, Tensor]:
    if not exists(uri):
        raise UsageError(f"checkpoint {uri} does not exist")
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / os.path.basename(uri)
        download(uri, local)
        try:
            check_weights(read_bytes(local, WHOLE_FILE_BYTES))
            state: dict[str, Tensor] = timm.models.load_state_dict(
                str(local), use_ema=False, weights_only=True
            )
        except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere in the parser
            reason = one_line(error)
            raise UsageError(f"cannot read checkpoint {uri}: {reason}") from None
    return state

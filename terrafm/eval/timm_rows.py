"""Encoders of timm as rows of a comparison: `timm:NAME`, or `timm:NAME@URI` with a checkpoint.

The checkpoint's first layer decides what the model sees. Three channels: B04, B03 and B02 as a
picture, reflectance 0 to 0.3 as 0 to 1, then the model's own mean and std. As many channels as the
modality has bands: all of them in model order, standardised by the set. Anything else is refused.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.features import batches
from terrafm.eval.labelled import ImageSet
from terrafm.eval.rows import Look, Row, state_fingerprint
from terrafm.modalities import MODALITIES
from terrafm.storage import download, exists

PREFIX = "timm:"
PICTURE_BANDS = ("B04", "B03", "B02")
# Brightest reflectance of a picture: as quick looks are stretched.
BRIGHTEST = 0.3


def timm_row(name: str, images: ImageSet, look: Look) -> Row:
    """A row of one of timm's models.

    Args:
        name: `timm:NAME` for the weights that timm publishes, `timm:NAME@URI` for a checkpoint
            (safetensors, or a `.pth` of tensors) of that architecture.
        images: the set.
        look: how it is looked at; the side is the model's own.

    Raises:
        UsageError: no such model, weights that cannot be read or do not fit it, or channels that
            are neither a picture nor the modality's bands.
    """
    if len(look.modalities) > 1:
        raise UsageError(f"{name} sees one modality, not {', '.join(look.modalities)}")
    (modality,) = look.modalities
    architecture, _, uri = name.removeprefix(PREFIX).partition("@")
    model, channels = _published(architecture) if not uri else _from_file(architecture, uri)
    model = model.eval()
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
    picture = channels == len(PICTURE_BANDS) and channels != sensor.channels

    def prepare(pixels: Tensor) -> Tensor:
        pixels = pixels[:, take]
        if picture:
            pixels = pixels.clamp(0, 1)
        shape = (1, channels, 1, 1)
        centre = torch.as_tensor(mean, dtype=torch.float32, device=pixels.device).view(shape)
        return (pixels - centre) / torch.as_tensor(std, dtype=torch.float32).to(centre).view(shape)

    depends_on = {
        "row": f"{PREFIX}{architecture}",
        "timm": timm.__version__,
        "weights": state_fingerprint(model),
        "modalities": [modality],
        "size": side,
        "seen": seen,
        "normalisation": {key: [float(v) for v in statistics[key]] for key in ("mean", "std")},
    }
    return Row(
        name,
        f"{seen}, {side} pixels",
        depends_on,
        lambda: _features(model, prepare, images, modality, statistics, side, look),
    )


def _all(value: float, count: int) -> list[float]:
    return [value] * count


@torch.inference_mode()
def _features(
    model: nn.Module,
    prepare: Any,
    images: ImageSet,
    modality: str,
    statistics: Mapping[str, Any],
    side: int,
    look: Look,
) -> NDArray[np.float32]:
    model = model.to(look.device)
    found: NDArray[np.float32] | None = None
    for rows, pixels in batches(images, (modality,), {modality: statistics}, side, look.batch):
        if modality not in pixels:
            continue
        tokens = functional.normalize(model(prepare(pixels[modality].to(look.device))).float())
        if found is None:
            found = np.zeros((len(images.names), tokens.shape[-1]), np.float32)
        found[rows] = tokens.cpu().numpy()
    if found is None:
        raise UsageError(f"{images.uri}: no image has {modality}")
    return found


def _published(architecture: str) -> tuple[nn.Module, int]:
    _check_name(architecture)
    try:
        model = timm.create_model(architecture, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"timm cannot give the weights of {architecture}: {reason}; name a checkpoint with "
            f"{PREFIX}{architecture}@URI"
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
            state: dict[str, Tensor] = timm.models.load_state_dict(
                str(local), use_ema=False, weights_only=True
            )
        except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere in the parser
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UsageError(f"cannot read checkpoint {uri}: {reason}") from None
    return state

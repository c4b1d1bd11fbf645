"""Models of other projects, with weights of theirs or fresh ones: timm's, and torchgeo's.

torchgeo's ResNets and ViTs are timm's architectures. What its package adds is which bands their
weights see, and how those are normalised; the weights themselves are files for themselves.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn

from terrafm.errors import UsageError
from terrafm.eval.features.encoders import TIMM, TORCHGEO
from terrafm.models.claims import check_weights
from terrafm.storage import download, exists, read_bytes
from terrafm.storage.faults import one_line
from terrafm.storage.limits import WHOLE_FILE_BYTES

# Of a ViT pretrained without its last norm, which is then one that changes nothing but scale.
_MAY_BE_MISSING = {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}
# Standard deviations of Sentinel-2's digital numbers are hundreds; B10, the cirrus band, is dark.
_LEAST_SPREAD = 300.0
_DARK = "B10"


def timm_model(architecture: str, uri: str) -> tuple[nn.Module, int]:
    """One of timm's models without its classifier, in eval mode, and the channels that it takes.

    Args:
        architecture: timm's name.
        uri: of a checkpoint; empty for the weights that timm publishes.

    Raises:
        UsageError: no such model, or weights that cannot be read or do not fit it.
    """
    model, channels = _from_file(architecture, uri) if uri else _published(architecture)
    return model.eval(), channels


def fresh_model(architecture: str, channels: int, seed: int) -> nn.Module:
    """One of timm's models with weights that have seen nothing, in eval mode.

    Raises:
        UsageError: no such model, or none that takes so many channels.
    """
    _check_name(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(
                architecture, pretrained=False, num_classes=0, in_chans=channels
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"timm's {architecture} does not take {channels} channels: {one_line(error)}"
            ) from None
    return model.eval()


@dataclass(frozen=True)
class TorchgeoWeights:
    """What torchgeo says of weights that see Sentinel-2.

    Attributes:
        name: as `torchgeo.models.get_weight` takes it.
        model: timm's name of the architecture.
        bands: in the order of the channels, as TerraFM names them.
        mean: (C,) of digital numbers (reflectance times 10,000).
        std: as `mean`.
    """

    name: str
    model: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def named(cls, name: str) -> "TorchgeoWeights":
        """Those of a name, such as "ResNet50_Weights.SENTINEL2_ALL_MOCO".

        Raises:
            UsageError: torchgeo is not installed, or knows none of that name that see Sentinel-2's
                bands as digital numbers through a model of timm's.
        """
        found = _weights_entry(name)
        meta = found.meta
        bands = tuple(_band(str(band)) for band in meta.get("bands", ()))
        # Landsat's bands are called B1 to B7 as well.
        if "SENTINEL2" not in name or not all(band.startswith("B") for band in bands or " "):
            raise UsageError(f"{TORCHGEO}{name} does not see Sentinel-2")
        if not timm.is_model(str(meta["model"])):
            raise UsageError(f"{TORCHGEO}{name}: timm has no model {meta['model']}")
        mean, std = _normalisation(found.transforms, len(bands), name)
        if any(s < _LEAST_SPREAD for s, band in zip(std, bands, strict=True) if band != _DARK):
            raise UsageError(
                f"{TORCHGEO}{name} sees 8-bit pictures or other units, not Sentinel-2's digital "
                "numbers"
            )
        return cls(name, str(meta["model"]), bands, mean, std)

    def load(self, uri: str) -> nn.Module:
        """The model without its classifier, in eval mode.

        Args:
            uri: of the weights' file; empty lets torchgeo download it.

        Raises:
            UsageError: the file cannot be had or read, or does not fit.
        """
        model: nn.Module = timm.create_model(
            self.model, pretrained=False, num_classes=0, in_chans=len(self.bands)
        )
        state = _without_head(read_state(uri) if uri else self._published(), model)
        missing, unexpected = _load_into(model, state, uri or self.name)
        if unexpected or set(missing) - _MAY_BE_MISSING:
            wrong = ", ".join([*unexpected, *missing][:4])
            raise UsageError(f"checkpoint {uri or self.name} does not fit {self.model}: {wrong}")
        return model.eval()

    def _published(self) -> dict[str, Tensor]:
        try:
            state = _weights_entry(self.name).get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise UsageError(
                f"torchgeo cannot give the weights {self.name}: {one_line(error)}; name their file "
                f"with {TORCHGEO}{self.name}@URI"
            ) from None
        return cast(dict[str, Tensor], state)


def read_state(uri: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name: safetensors, or a `.pth` of tensors.

    Raises:
        UsageError: it does not exist or holds something else.
    """
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
    state = read_state(uri)
    probe = timm.create_model(architecture, pretrained=False, num_classes=0)
    channels = _first_channels(state, probe, uri)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, in_chans=channels)
    missing, unexpected = _load_into(model, _without_head(state, model), uri)
    if missing or unexpected:
        wrong = ", ".join([*missing, *unexpected][:4])
        raise UsageError(f"checkpoint {uri} does not fit {architecture}: {wrong}")
    return model, channels


def _load_into(
    model: nn.Module, state: Mapping[str, Tensor], where: str
) -> tuple[list[str], list[str]]:
    """Loads what fits; names that are missing, and those that the model has not."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"checkpoint {where} does not fit: {reason}") from None
    return list(missing), list(unexpected)


def _without_head(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    head = _config(model).get("classifier") or ()
    heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


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


def _weights_entry(name: str) -> Any:
    try:
        from torchgeo.models import get_weight
    except ImportError:
        raise UsageError(
            f"{TORCHGEO}{name} needs torchgeo, which knows its bands and normalisation: "
            "pip install 'terrafm[copernicus]'"
        ) from None
    try:
        return get_weight(name)
    except ValueError:
        raise UsageError(
            f"torchgeo has no weights {name!r}: a name is such as "
            "ResNet50_Weights.SENTINEL2_ALL_MOCO"
        ) from None


def _band(name: str) -> str:
    """B1 and B8a, as torchgeo writes them, as B01 and B8A; what is no such name stays."""
    number = name[1:].upper()
    return f"B{number.zfill(2) if number.isdigit() else number}" if name.startswith("B") else name


def _normalisation(
    transforms: Any, channels: int, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """All its Normalize steps as one (x - mean) / std; resizing is the table's own."""
    mean, std = np.zeros(channels), np.ones(channels)
    steps = [step for step in _steps(transforms) if type(step).__name__ == "Normalize"]
    if not steps or not all(hasattr(step, "mean") and hasattr(step, "std") for step in steps):
        raise UsageError(
            f"{TORCHGEO}{name}: its normalisation is not understood (torchgeo 0.9 or later?)"
        )
    for step in steps:
        # ((x - mean) / std - m) / s, one after the other.
        mean = mean + std * np.asarray(step.mean, np.float64)
        std = std * np.asarray(step.std, np.float64)
    return tuple(mean.tolist()), tuple(std.tolist())


def _steps(transforms: Any) -> list[Any]:
    if isinstance(transforms, nn.Sequential):
        return list(transforms)
    return list(getattr(transforms, "transforms", ()))

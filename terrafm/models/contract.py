"""What weights expect of their input and where they come from: the data contract of a file."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

import terrafm
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, VARIABLE
from terrafm.models.patch_embed import IMAGE_SIZE, PATCH_SIZE
from terrafm.storage import parse_json
from terrafm.storage.records import Finite, first_fault, validated

LARGEST_IMAGE = 16384
"""Side of a model's input, pixels: images are resized to it."""


class ModalityContract(BaseModel):
    """What one modality's input must be: bands in channel order, unit, normalisation.

    The model sees (x - mean) / std per band, with x in `unit`, and 0 where there is no data.
    `storage_scale` turns the usual integers into `unit`: reflectance = digital number * 1e-4
    after offset removal, dB = hundredths of a dB * 0.01.
    """

    model_config = ConfigDict(frozen=True)

    bands: tuple[str, ...]
    # Exports write it into comments of code and of YAML.
    unit: str = Field(pattern=r"^[\w ./%-]{1,40}$")
    storage_scale: Finite
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError("bands, mean and std must be equally long")
        if not all(math.isfinite(v) for v in self.mean + self.std) or min(self.std) <= 0:
            raise ValueError("mean must be finite and std above 0")
        return self


def _for_bands(value: Any, bands: int) -> list[float]:
    """A number for each band of those that were given, or of the one.

    Raises:
        TypeError, ValueError: they are no numbers, or another number of them.
    """
    if isinstance(value, int | float):
        return [float(value)] * bands
    found = [float(number) for number in value]
    if len(found) != bands:
        raise ValueError(f"{len(found)} numbers for {bands} bands")
    return found


def _span(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


class WeightsContract(BaseModel):
    """What weights expect of their input, and where they come from."""

    model_config = ConfigDict(frozen=True)

    format: Literal["terrafm-weights"] = "terrafm-weights"
    version: Literal[1] = 1
    # Exports name files by it.
    model: str = Field(pattern=r"^\w+$")
    modalities: dict[str, ModalityContract]
    image_size: Annotated[int, Field(gt=0, le=LARGEST_IMAGE)]
    patch_size: PositiveInt = PATCH_SIZE
    network: Literal["teacher", "student"] = "teacher"
    dataset_fingerprint: str | None = None
    terrafm_version: str = terrafm.__version__
    commit: str | None = None
    # Finished steps of the run; None where the weights are of none, or of an earlier version.
    step: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, modality in self.modalities.items():
            if name not in MODALITIES:
                raise ValueError(
                    f"no sensor {name} is known here: install the package that brings it, or name "
                    f"it in {VARIABLE} (docs/new_sensor.md)"
                )
            if modality.bands != MODALITIES[name].bands:
                raise ValueError(f"modality {name} with bands {' '.join(modality.bands)}")
        return self

    @classmethod
    def build(
        cls,
        model: str,
        statistics: Mapping[str, Mapping[str, Any]],
        *,
        image_size: int = IMAGE_SIZE,
        dataset_fingerprint: str | None = None,
        commit: str | None = None,
    ) -> Self:
        """The contract of weights trained on a dataset.

        Args:
            model: a key of `ARCHITECTURES`.
            statistics: modality -> {"mean": ..., "std": ...} in model band order, physical
                units, as a dataset's manifest has them.
            image_size: side of a global crop, pixels.
            dataset_fingerprint: the dataset's.
            commit: of the code that trained.
        """
        modalities = {
            name: ModalityContract(
                bands=MODALITIES[name].bands,
                unit=MODALITIES[name].unit,
                storage_scale=MODALITIES[name].scale,
                mean=tuple(values["mean"]),
                std=tuple(values["std"]),
            )
            for name, values in statistics.items()
        }
        return cls(
            model=model,
            modalities=modalities,
            image_size=image_size,
            dataset_fingerprint=dataset_fingerprint,
            commit=commit,
        )

    @classmethod
    def assumed(cls, model: str, normalisation: Mapping[str, Mapping[str, Any]]) -> Self:
        """The contract of weights that state none, by what their user assumes.

        Args:
            model: a key of `ARCHITECTURES`.
            normalisation: modality -> {"mean": ..., "std": ...} or {"min": ..., "max": ...}, which
                become 0 and 1; numbers, or one for each band, in the modality's unit.

        Raises:
            UsageError: no such modality, other keys, or numbers that normalise nothing.
        """
        statistics = {}
        for name, given in normalisation.items():
            if name not in MODALITIES:
                raise UsageError(f"normalisation: no modality {name!r}: {', '.join(MODALITIES)}")
            bands = MODALITIES[name].channels
            try:
                if {"mean", "std"} <= set(given):
                    center, spread = (
                        _for_bands(given["mean"], bands),
                        _for_bands(given["std"], bands),
                    )
                elif set(given) == {"min", "max"}:
                    center = _for_bands(given["min"], bands)
                    highest = _for_bands(given["max"], bands)
                    spread = [high - low for low, high in zip(center, highest, strict=True)]
                else:
                    raise ValueError("give mean and std, or min and max")
            except (TypeError, ValueError) as error:
                raise UsageError(f"normalisation of {name}: {error}") from None
            statistics[name] = {"mean": center, "std": spread}
        try:
            return cls.build(model, statistics)
        except ValidationError as error:
            raise UsageError(f"normalisation: {first_fault(error)}") from None

    def in_words(self) -> str:
        """The normalisation in one line, such as: s1 in dB, less -12.5 to -19.1, over 5.1."""
        return "; ".join(
            f"{name} in {m.unit}, less {_span(m.mean)}, over {_span(m.std)}"
            for name, m in self.modalities.items()
        )

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal contract."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads a contract.

        Raises:
            ValueError: not JSON, or not a contract; the message is one line.
        """
        return validated(parse_json(text), cls)

    def normalise(self, images: Tensor, modality: str) -> Tensor:
        """Physical values to model input: (x - mean) / std, and 0 where there is no data.

        Args:
            images: (B, C, H, W) float in the modality's unit; NaN or infinite, as the dB of 0
                are, where there is no data.
            modality: which one.

        Returns:
            As `images`, finite.

        Raises:
            ValueError: the weights were not trained on this modality, wrong bands, or integers,
                which are no physical values: a file's numbers have a scale.
        """
        if modality not in self.modalities:
            known = ", ".join(self.modalities)
            raise ValueError(f"these weights know no modality {modality!r}, but {known}")
        contract = self.modalities[modality]
        if images.ndim != 4 or images.shape[1] != len(contract.bands):
            raise ValueError(
                f"{modality} images must be (B, {len(contract.bands)}, H, W), bands "
                f"{' '.join(contract.bands)}; these are {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"{modality} images are {str(images.dtype).removeprefix('torch.')}: give "
                f"{contract.unit} as float. Digital numbers are images.float() * "
                f"{contract.storage_scale:g}, where the file says nothing else"
            )
        # Half precision knows no dB to the hundredth, and overflows before it is divided.
        precise = images.to(torch.promote_types(images.dtype, torch.float32))
        mean = precise.new_tensor(contract.mean).view(-1, 1, 1)
        std = precise.new_tensor(contract.std).view(-1, 1, 1)
        normalised = ((precise - mean) / std).to(images.dtype)
        return torch.where(normalised.isfinite(), normalised, 0.0)

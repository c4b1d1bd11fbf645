"""Images of a set that names its bands, one channel each, as the encoder takes them.

Benchmarks hand over one tensor whose channels they describe by sensor, name and statistics. Which
channel is which band of which sensor, and in which unit, is told from that alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from terrafm.data.rasters.bands import (
    BY_RESOLUTION,
    CIRRUS,
    EUROSAT_ORDER,
    EXCHANGED_DB,
    canonical,
    is_cirrus,
)
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, OPTICAL, SENTINEL
from terrafm.models.contract import WeightsContract

_LOG = logging.getLogger(__name__)

# Raw values of optical bands: digital numbers reach thousands, reflectance seldom 3.
_DIGITAL_NUMBERS = 1000.0
_HIGHEST_REFLECTANCE = 10.0
# Backscatter of land in dB lies far below 0 on average; complex values lie around it.
_HIGHEST_MEAN_DB = -1.0
# And in linear power it is below 1: dB that were stored as unsigned numbers are no power.
_HIGHEST_MEAN_POWER = 100.0
_MISNAMED = {*MODALITIES["s2_l2a"].bands, CIRRUS} - {"B09"}


class Described(Protocol):
    """What a set says of one channel; torchgeo-bench's `BandSpec` is one."""

    sensor: str
    name: str
    mean: float
    min: float
    max: float


class Unit(StrEnum):
    """How a channel's raw values become physical ones."""

    PHYSICAL = "physical"
    DIGITAL_NUMBER = "digital number"
    POWER = "linear power"


@dataclass(frozen=True)
class Channel:
    """Where a channel of the set goes.

    Attributes:
        at: its position in the set's images.
        band: its position among the modality's bands.
        unit: of its raw values.
    """

    at: int
    band: int
    unit: Unit


class NamedBands:
    """Which channels of a set the encoder takes, and as what.

    Args:
        bands: of the set, in the order of its channels.
        contract: of the weights.
        modalities: only these; by default all that the weights know and the set has, and of
            Sentinel-2 Level-1C where the set has the cirrus band, else Level-2A.

    Attributes:
        channels: modality -> its channels.

    Raises:
        UsageError: the set has no band of these sensors, or raw values of a unit that is not
            understood.
    """

    def __init__(
        self,
        bands: Sequence[Described],
        contract: WeightsContract,
        modalities: Sequence[str] | None = None,
    ) -> None:
        self._contract = contract
        self._bands = bands
        self.channels: dict[str, tuple[Channel, ...]] = {}
        for name in self._wanted(modalities):
            if found := self._channels_of(name):
                self.channels[name] = found
        if not self.channels:
            listed = ", ".join(f"{band.sensor}:{band.name}" for band in bands)
            raise UsageError(
                f"none of the set's bands ({listed}) is one of {', '.join(contract.modalities)}, "
                "which these weights were trained on: choose other bands, or another set"
            )

    def normalised(self, images: Tensor) -> Tensor:
        """Raw values normalised with the statistics of the weights' training.

        Args:
            images: (B, C, H, W) float, raw values as the set has them.

        Returns:
            The same shape: reflectance or dB less the contract's mean, over its deviation; 0 where
            that is not finite, and in channels that are not taken.
        """
        result = torch.zeros_like(images)
        for name, channels in self.channels.items():
            physical = self._gathered(images, name, torch.nan, raw=True)
            normalised = self._contract.normalise(physical, name)
            for channel in channels:
                result[:, channel.at] = normalised[:, channel.band]
        return result

    def arranged(self, images: Tensor) -> dict[str, Tensor]:
        """The model's input.

        Args:
            images: (B, C, H, W), normalised.

        Returns:
            modality -> (B, C_m, H, W) in the model's order of bands, 0 for bands that the set
            lacks and where a value is not finite.
        """
        return {
            name: torch.nan_to_num(self._gathered(images, name, 0.0), 0.0, 0.0, 0.0)
            for name in self.channels
        }

    def describe(self) -> str:
        """Which channel is taken as what, in one line."""
        parts = []
        for name, channels in self.channels.items():
            own = MODALITIES[name].bands
            unit = ", ".join(sorted({str(channel.unit) for channel in channels}))
            pairs = " ".join(f"{own[channel.band]}={channel.at}" for channel in channels)
            there = {channel.band for channel in channels}
            missing = [band for i, band in enumerate(own) if i not in there]
            lacks = f", without {' '.join(missing)}" if missing else ""
            parts.append(f"{name} from {unit}: {pairs}{lacks}")
        return "; ".join(parts)

    def _wanted(self, modalities: Sequence[str] | None) -> list[str]:
        known = self._contract.modalities
        for name in modalities or ():
            if name not in known:
                raise UsageError(
                    f"modality {name}: these weights were trained on {', '.join(known)}"
                )
        if modalities:
            return list(modalities)
        has_cirrus = CIRRUS in self._names("s2_l1c")
        first, second = OPTICAL if has_cirrus else reversed(OPTICAL)
        left_out = second if first in known else None
        return [name for name in known if name != left_out]

    def _channels_of(self, modality: str) -> tuple[Channel, ...]:
        """The channels of the modality's first sensor: two passes of radar are not one image."""
        own = MODALITIES[modality].bands
        found: dict[str, dict[int, int]] = {}
        names = self._names(modality)
        for at, (band, name) in enumerate(zip(self._bands, names, strict=True)):
            if name in own:
                found.setdefault(band.sensor, {}).setdefault(own.index(name), at)
        if not found:
            return ()
        sensor, places = next(iter(found.items()))
        if len(found) > 1:
            _LOG.warning("of %s only %s is taken as %s", ", ".join(found), sensor, modality)
        unit = self._unit(modality, [self._bands[at] for at in places.values()])
        if unit is None:
            return ()
        if modality == "s1":
            places = self._told_apart(places, unit)
        return tuple(Channel(at, band, unit) for band, at in sorted(places.items()))

    def _names(self, modality: str) -> list[str | None]:
        """The band that each channel is; None for what is none of the modality."""
        names = [
            canonical(band.name, modality) if _is_of(band, modality) else None
            for band in self._bands
        ]
        if modality not in OPTICAL or CIRRUS not in names:
            return names
        named = [(b.mean, name) for b, name in zip(self._bands, names, strict=True) if name]
        means = [mean for mean, _ in named]
        at = [name for _, name in named].index(CIRRUS)
        if len(means) == 1 or is_cirrus(means, at):
            return names
        order: tuple[str, ...] = ()
        if len(means) == len(EUROSAT_ORDER) and is_cirrus(means, EUROSAT_ORDER.index(CIRRUS)):
            # As GEO-Bench's m-eurosat: EuroSAT's files under the names of the usual order.
            order = EUROSAT_ORDER
        elif {name for _, name in named} == _MISNAMED:
            # As GEO-Bench-2's dynamic_earthnet.
            order = BY_RESOLUTION
        else:
            raise UsageError(
                f"the set's cirrus band has a mean of {means[at]:g}, as it never has: its bands "
                "bear wrong names; choose some of them"
            )
        _LOG.warning("the cirrus band is bright: bands are taken as %s", " ".join(order))
        put_right = iter(order)
        return [next(put_right) if name else None for name in names]

    def _unit(self, modality: str, bands: Sequence[Described]) -> Unit | None:
        """Of the raw values; None where they are no measurement that the model knows."""
        radiometry = MODALITIES[modality].radiometry
        if radiometry == "stated":
            return Unit.PHYSICAL
        highest = max(band.max for band in bands)
        if radiometry == "sentinel-2":
            if highest > _DIGITAL_NUMBERS:
                return Unit.DIGITAL_NUMBER
            if highest <= _HIGHEST_REFLECTANCE:
                return Unit.PHYSICAL
            raise UsageError(
                f"the set's {modality} bands reach {highest:g}: neither digital numbers nor "
                "reflectance"
            )
        is_power = min(band.min for band in bands) >= 0
        highest_mean = max(band.mean for band in bands)
        if highest_mean > (_HIGHEST_MEAN_POWER if is_power else _HIGHEST_MEAN_DB):
            _LOG.warning(
                "%s is not taken as %s: values around %.2g, from %.3g to %.3g, are no backscatter",
                " ".join(band.name for band in bands), modality, bands[0].mean, bands[0].min,
                bands[0].max,
            )  # fmt: skip
            return None
        return Unit.POWER if is_power else Unit.PHYSICAL

    def _told_apart(self, places: Mapping[int, int], unit: Unit) -> dict[int, int]:
        """VV and VH by what they measure, where a set has exchanged their names."""
        if unit is not Unit.PHYSICAL or len(places) < 2:
            return dict(places)
        vv, vh = (self._bands[places[band]] for band in (0, 1))
        if vh.mean < vv.mean + EXCHANGED_DB:
            return dict(places)
        _LOG.warning(
            "%s has a mean of %.1f dB and %s of %.1f dB: the set has exchanged their names, "
            "and they are taken the other way round",
            vv.name, vv.mean, vh.name, vh.mean,
        )  # fmt: skip
        return {0: places[1], 1: places[0]}

    def _gathered(self, images: Tensor, modality: str, fill: float, raw: bool = False) -> Tensor:
        shape = (len(images), MODALITIES[modality].channels, *images.shape[2:])
        pixels = images.new_full(shape, fill)
        for channel in self.channels[modality]:
            values = images[:, channel.at]
            if raw and channel.unit is Unit.DIGITAL_NUMBER:
                values = values * MODALITIES[modality].scale
            elif raw and channel.unit is Unit.POWER:
                # The dB of 0 is no measurement: infinite, which is 0 after normalisation.
                values = 10 * values.log10()
            pixels[:, channel.band] = values
        return pixels


def _is_of(band: Described, modality: str) -> bool:
    """Whether a channel's sensor may be that modality."""
    sensor = band.sensor.lower()
    if modality not in SENTINEL:
        return sensor in (modality, *MODALITIES[modality].folders)
    if modality in OPTICAL:
        return sensor.startswith(("s2", "sentinel2", "sentinel-2"))
    return sensor.startswith(("s1", "sar", "sentinel1", "sentinel-1"))


def whole_patches(pixels: Mapping[str, Tensor], patch: int, size: int | None) -> dict[str, Tensor]:
    """Resizes images (bicubic, antialiased) to `size`, or by default to whole patches.

    Args:
        pixels: modality -> (B, C, H, W).
        patch: side of a patch, pixels.
        size: side of the result, pixels; None keeps sizes that are whole patches, and enlarges
            others to the next.
    """
    resized = {}
    for name, images in pixels.items():
        sides = [size or -(-side // patch) * patch for side in images.shape[2:]]
        if sides != list(images.shape[2:]):
            images = functional.interpolate(
                images, sides, mode="bicubic", antialias=True, align_corners=False
            )
        resized[name] = images
    return resized

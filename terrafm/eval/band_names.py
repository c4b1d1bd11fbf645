"""Bands of a file to bands of the model, by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

# B1, B01, 01, b8a, 08A, "08A - Vegetation Red Edge", "B02.tif"
_SENTINEL2 = re.compile(r"^b?0*(1[0-2]|[1-9])(a?)(?![0-9a-z])", re.IGNORECASE)
_SENTINEL1 = re.compile(r"^(vv|vh)(?![a-z0-9])", re.IGNORECASE)
RULE = "0 after normalisation"


@dataclass(frozen=True)
class BandMatch:
    """Which band of a file is which band of the model.

    Attributes:
        modality: whose bands.
        names: canonical names of the file's bands, in its order; None for what is no band.
        channels: positions in the model's order of the bands that the file has.
        take: for each of them its position in the file.
        source: where the names come from, for the reader of a result.
    """

    modality: str
    names: tuple[str | None, ...]
    channels: tuple[int, ...]
    take: tuple[int, ...]
    source: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Bands of the model that the file does not have."""
        bands = MODALITIES[self.modality].bands
        return tuple(band for i, band in enumerate(bands) if i not in self.channels)

    def describe(self) -> str:
        """Which band went where, in one line."""
        bands = MODALITIES[self.modality].bands
        went = " ".join(
            f"{bands[channel]}={at + 1}"
            for channel, at in zip(self.channels, self.take, strict=True)
        )
        dropped = [
            f"{name or 'unknown'}={at + 1}"
            for at, name in enumerate(self.names)
            if at not in self.take
        ]
        parts = [f"model band = place in the file ({self.source}): {went}"]
        if dropped:
            parts.append(f"dropped {' '.join(dropped)}")
        if self.missing:
            parts.append(f"missing {' '.join(self.missing)}: {RULE}")
        return "; ".join(parts)


def canonical(name: str, modality: str) -> str | None:
    """The band that a name means: "B8A" for 8A, 08A, b8a or "08A - Vegetation Red Edge".

    Args:
        name: as a file has it.
        modality: whose bands to look for.

    Returns:
        Its usual name, or None where it is no band of that sensor.
    """
    text = name.strip()
    if MODALITIES[modality].unit == "dB":
        radar = _SENTINEL1.match(text)
        return radar.group(1).upper() if radar else None
    found = _SENTINEL2.match(text)
    if found is None:
        return None
    number, letter = int(found.group(1)), found.group(2).upper()
    if letter:
        return "B8A" if number == 8 else None
    return f"B{number:02d}"


def match_bands(names: Sequence[str], modality: str, source: str, where: str) -> BandMatch:
    """Matches the bands of a file to the model's by name.

    Args:
        names: of the file's bands, in its order.
        modality: whose bands.
        source: where the names come from.
        where: the file, for the message.

    Raises:
        UsageError: a band occurs twice, or none is a band of the modality.
    """
    found = tuple(canonical(name, modality) for name in names)
    bands = MODALITIES[modality].bands
    pairs = []
    for channel, band in enumerate(bands):
        at = [i for i, name in enumerate(found) if name == band]
        if len(at) > 1:
            raise UsageError(f"{where}: band {band} occurs {len(at)} times ({', '.join(names)})")
        if at:
            pairs.append((channel, at[0]))
    if not pairs:
        raise UsageError(
            f"{where}: none of its bands ({', '.join(names)}) is a band of {modality} "
            f"({' '.join(bands)})"
        )
    channels, take = zip(*pairs, strict=True)
    return BandMatch(modality, found, channels, take, source)

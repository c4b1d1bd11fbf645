"""GeoTIFFs of one sensor: bands in model order, physical units, NaN where nothing was measured.

What a file's pixels mean is decided for the file as a whole, never for a window of it, with the
evidence of `terrafm.data.sources.offsets` and what a few files from all over the set have in
common.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import Product
from terrafm.data.rasters.bands import BandMatch, check_named, match_file, modality_of
from terrafm.data.rasters.geotiff import Stored, band_levels
from terrafm.data.rasters.units import Decision, to_storage
from terrafm.data.sources.offsets import Survey, claimed_offset, decide, named_product
from terrafm.errors import PixelError, UsageError
from terrafm.modalities import MODALITIES, OPTICAL


@dataclass(frozen=True)
class SensorFiles:
    """How the files of a set are read.

    Attributes:
        match: which band of a file is which of the model.
        survey: what those looked at have in common.
        decided: file -> decision, of those looked at.
        check_units: integers that can be in no unit are refused; else they are digital numbers.
    """

    match: BandMatch
    survey: Survey = field(default_factory=Survey)
    decided: Mapping[str, Decision] = field(default_factory=dict)
    check_units: bool = True

    @classmethod
    def of(
        cls,
        samples: Mapping[str, Stored],
        modality: str | None,
        bands: Sequence[str] | None,
        *,
        otherwise: Sequence[str] | None = None,
        check_units: bool = True,
    ) -> "SensorFiles":
        """Looks at some files of a set, which all have the same bands.

        Args:
            samples: file -> some of its pixels.
            modality: of the files; by default what their bands or tags say.
            bands: names of their bands, in their order; by default the files' own.
            otherwise: order of 13 bands without names where the pixels do not tell it.
            check_units: refuse integers that can be in no unit of the modality.

        Raises:
            PixelError: it cannot be told which band is which, or what the pixels mean.
        """
        first, stored = next(iter(samples.items()))
        labels = stored.header.names
        check_named(bands, len(labels), first)
        if modality is None:
            modality = stored.header.tags.get("MODALITY")
            modality = modality if modality in MODALITIES else modality_of(bands or labels, first)
        elif modality not in MODALITIES:
            raise UsageError(f"unknown modality {modality!r}: one of {', '.join(MODALITIES)}")

        def levels() -> list[float]:
            pixels = [part.measured(modality, file) for file, part in samples.items()]
            return band_levels(np.concatenate([p.reshape(len(p), -1) for p in pixels], axis=1))

        match = match_file(labels, modality, first, levels, bands, otherwise=otherwise)
        reader = cls(match, check_units=check_units)
        decided, faults = {}, []
        for file, part in samples.items():
            try:
                decided[file] = reader.decide(file, part)
            except PixelError as fault:
                faults.append(fault)
        if not decided:
            raise faults[0]
        reader = replace(reader, survey=Survey.of({modality: d} for d in decided.values()))
        # Once more: what they have in common decides where one alone did not.
        again = {file: reader.decide(file, part) for file, part in samples.items()}
        return replace(reader, decided=again)

    @property
    def modality(self) -> str:
        """Of the files."""
        return self.match.modality

    def decide(self, file: str, pixels: Stored) -> Decision:
        """What the pixels of a file mean.

        Args:
            file: its URI.
            pixels: all of them, or a sample.

        Raises:
            PixelError: they can be in no unit of the modality.
        """
        bands = MODALITIES[self.modality].bands
        measured = pixels.measured(self.modality, file)
        header, match = pixels.header, self.match
        stem = os.path.splitext(file.rpartition("/")[2])[0]
        product = Product(
            modality=self.modality,
            bands={
                bands[channel]: measured[at]
                for channel, at in zip(match.channels, match.take, strict=True)
            },
            gsd={},
            product_id=named_product(header.tags, stem),
            cirrus=None if match.cirrus is None else measured[match.cirrus],
            source=file,
            claim=claimed_offset(header.tags, any(header.offsets)),
        )
        try:
            return decide({self.modality: product}, self.survey)[self.modality]
        except PixelError:
            if self.check_units or measured.dtype.kind == "f":
                raise
            return Decision(0, "not checked", "DN")

    def physical(self, file: str, pixels: Stored, decision: Decision) -> NDArray[np.float32]:
        """(len(match.take), H, W) in the modality's unit, as shards of ingest would hold them."""
        measured = pixels.measured(self.modality, file, self.match.take)
        stored = to_storage(measured, self.modality, None, decision)
        return MODALITIES[self.modality].to_physical(stored)

    def describe(self) -> str:
        """What was decided of the files looked at, in one line."""
        counts = Counter(
            decision.unit
            if self.modality not in OPTICAL
            else f"{decision.unit}, offset {decision.offset} by {decision.reason}"
            for decision in self.decided.values()
        )
        many = len(self.decided)
        return ", ".join(
            text if n == many else f"{text} in {n} of {many} files" for text, n in counts.items()
        )

    def to_json(self) -> dict[str, Any]:
        """For `survey_of`, and for the reader of a result."""
        return {
            "decided": self.describe(),
            "offsets": dict(self.survey.offsets),
            "units": dict(self.survey.units),
        }


def survey_of(values: Mapping[str, Any]) -> Survey:
    """What `SensorFiles.to_json` keeps of a survey."""
    return Survey(values.get("offsets", {}), values.get("units", {}))

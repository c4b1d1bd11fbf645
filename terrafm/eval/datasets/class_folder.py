"""A folder per class, GeoTIFFs in it: EuroSAT-MS, EuroSAT-SAR, and one's own images."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.rasters.bands import EUROSAT_ORDER
from terrafm.data.rasters.geotiff import SUFFIXES, read_whole
from terrafm.data.sources.folders import archive_names
from terrafm.data.sources.offsets import spread
from terrafm.data.sources.sensor_files import SensorFiles
from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid, Image, files_fingerprint, measured_statistics
from terrafm.storage import join


class ClassFolder:
    """A folder per class with GeoTIFFs of one sensor.

    Bands are known by `bands`, or by the files' own band descriptions, or by the usual order; 13
    bands without names lie in it or, as EuroSAT's, with B8A last: the cirrus band tells. Units,
    offset and missing pixels are those of `terrafm.data.rasters`.
    """

    def __init__(
        self,
        uri: str,
        *,
        modality: str | None = None,
        bands: Sequence[str] | None = None,
        check_units: bool = True,
    ) -> None:
        """Lists the images, in the order of class and file name, and looks at a few.

        Args:
            uri: the folder.
            modality: of the images; by default what the bands say.
            bands: names of the files' bands, in their order.
            check_units: refuse values that are no reflectance or backscatter.

        Raises:
            UsageError: no class folder holds a GeoTIFF, or it cannot be told which band is which
                or what the pixels mean.
        """
        self.uri = uri
        self.files: list[str] = []
        labels: list[int] = []
        classes: list[str] = []
        for name in archive_names(uri):
            images = _images_of(uri, name)
            if images:
                labels += [len(classes)] * len(images)
                classes.append(name)
                self.files += images
        if not self.files:
            raise UsageError(
                f"no images under {uri}: expected a folder per class with GeoTIFFs, as EuroSAT-MS "
                "has them, or a dataset made by terrafm ingest"
            )
        self.names: Sequence[str] = [file.removeprefix(uri).lstrip("/") for file in self.files]
        self.labels = np.array(labels, np.int64)
        self.classes = tuple(classes)
        self.groups = np.arange(len(labels), dtype=np.int64)
        self.splits: NDArray[np.str_] | None = None
        samples = {self.files[at]: read_whole(self.files[at]) for at in spread(len(self.files))}
        self._first = samples[self.files[0]].header
        for file, sample in samples.items():
            sample.header.check_like(self._first, file, self.files[0])
        self._reader = SensorFiles.of(
            samples, modality, bands, otherwise=EUROSAT_ORDER, check_units=check_units
        )
        self.modalities: tuple[str, ...] = (self._reader.modality,)
        how = f"{self._reader.match.describe()}; {self._reader.describe()}"
        self.bands = {self._reader.modality: how}

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, and of how bands and pixels were read."""
        how = self.bands[self._reader.modality]
        return f"{files_fingerprint(self.uri, self.files)}:{how}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image, all bands on one grid; empty without the set's modality in `modalities`."""
        reader, file = self._reader, self.files[row]
        if reader.modality not in modalities:
            return {}
        stored = read_whole(file)
        stored.header.check_like(self._first, file, self.files[0])
        decision = reader.decided.get(file) or reader.decide(file, stored)
        pixels = reader.physical(file, stored, decision)
        return {reader.modality: [Grid(reader.match.channels, pixels)]}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over all images in one pass."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return measured_statistics(self, range(len(self.files)))


def _images_of(uri: str, name: str) -> list[str]:
    if name.lower().endswith(SUFFIXES):
        return []
    folder = join(uri, name)
    return [join(folder, file) for file in archive_names(folder) if file.lower().endswith(SUFFIXES)]

"""A folder per class, GeoTIFFs in it: EuroSAT-MS, EuroSAT-SAR, and one's own images."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.sources.folders import archive_names
from terrafm.errors import UsageError
from terrafm.eval.labelled import Grid, Image, files_fingerprint, measured_statistics
from terrafm.eval.sets.geotiff import SUFFIXES, match_header, physical, read_whole
from terrafm.storage import join


class ClassFolder:
    """A folder per class with GeoTIFFs of one sensor.

    Bands are known by `bands`, or by the files' own band descriptions, or, for 13 bands without
    names, by EuroSAT's order, in which B8A is last. Sentinel-2 integers are digital numbers:
    reflectance = number / 10000, 0 is nodata, no offset is removed; floats are reflectance.
    Sentinel-1 is dB.
    """

    def __init__(
        self, uri: str, *, modality: str | None = None, bands: Sequence[str] | None = None
    ) -> None:
        """Lists the images, in the order of class and file name, and reads the first.

        Args:
            uri: the folder.
            modality: of the images; by default what the bands say.
            bands: names of the files' bands, in their order.

        Raises:
            UsageError: no class folder holds a GeoTIFF, or its bands cannot be told.
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
        self._first = read_whole(self.files[0])
        self._match = match_header(self._first[0], modality, bands, self.files[0])
        self.modalities: tuple[str, ...] = (self._match.modality,)
        self.bands = {self._match.modality: self._match.describe()}

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, and of how the bands were matched."""
        return f"{files_fingerprint(self.uri, self.files)}:{self._match.describe()}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image, all bands on one grid; empty without the set's modality in `modalities`."""
        modality = self._match.modality
        if modality not in modalities:
            return {}
        file = self.files[row]
        header, stored = self._first if row == 0 else read_whole(file)
        header.check_like(self._first[0], file, self.files[0])
        pixels = physical(stored, header.nodata, modality, file)[list(self._match.take)]
        return {modality: [Grid(self._match.channels, pixels)]}

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

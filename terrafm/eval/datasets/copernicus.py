"""Copernicus-Bench through torchgeo's dataset classes, as `copernicus:NAME@FOLDER`.

The classes know folders, splits, classes and bands; products and units are stated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.rasters.bands import match_bands
from terrafm.data.rasters.units import is_missing
from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import (
    Grid,
    Image,
    check_physical,
    files_fingerprint,
    measured_statistics,
    training_rows,
)
from terrafm.eval.datasets.library_files import check_folder
from terrafm.storage import exists, is_local, resolve
from terrafm.storage.faults import one_line

PREFIX = "copernicus:"
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class _Known:
    """Class in torchgeo, product, scale to reflectance or dB, label of pixels that do not count."""

    name: str
    modality: str
    scale: float = 1e-4
    masks: bool = False
    ignore: int | None = None


SETS = {
    "cloud_s2": _Known("CopernicusBenchCloudS2", "s2_l1c", masks=True),
    "eurosat_s1": _Known("CopernicusBenchEuroSATS1", "s1", scale=1.0),
    "eurosat_s2": _Known("CopernicusBenchEuroSATS2", "s2_l1c"),
    "bigearthnet_s1": _Known("CopernicusBenchBigEarthNetS1", "s1", scale=1.0),
    "bigearthnet_s2": _Known("CopernicusBenchBigEarthNetS2", "s2_l2a"),
    "dfc2020_s1": _Known("CopernicusBenchDFC2020S1", "s1", scale=1.0, masks=True, ignore=0),
    "dfc2020_s2": _Known("CopernicusBenchDFC2020S2", "s2_l1c", masks=True, ignore=0),
    "lcz_s2": _Known("CopernicusBenchLCZS2", "s2_l1c", scale=1.0),
}


class _Copernicus:
    """What sets with classes and sets with masks share."""

    def __init__(self, uri: str, known: _Known, folder: str, check_units: bool) -> None:
        """Opens the three splits and looks at a few images.

        Args:
            uri: as the user named it.
            known: which set.
            folder: where it lies, on a disk.
            check_units: refuse values that are no reflectance or dB.

        Raises:
            UsageError: torchgeo is missing, the set is not there, or it has other units.
        """
        self.uri = uri
        self._known = known
        self._root = folder
        dataset = _library_class(known.name)
        self._parts: dict[str, Any] = {}
        for split in _SPLITS:
            try:
                self._parts[split] = dataset(folder, split=split, download=False)
            except Exception as error:  # noqa: BLE001 - torchgeo raises its own and pandas' kinds
                raise UsageError(f"cannot open {uri}, {split}: {one_line(error)}") from None
        self._rows = [(split, i) for split, part in self._parts.items() for i in range(len(part))]
        self.names: Sequence[str] = [f"{split}/{i}" for split, i in self._rows]
        self.splits: NDArray[np.str_] | None = np.array([_SPLITS[s] for s, _ in self._rows])
        self.groups = np.arange(len(self._rows), dtype=np.int64)
        self.classes = tuple(str(name) for name in dataset.classes)
        self._match = match_bands(dataset.all_bands, known.modality, "as torchgeo names them", uri)
        self.modalities: tuple[str, ...] = (known.modality,)
        self.bands = {known.modality: self._match.describe()}
        if check_units:
            check_physical(self, self.modalities)

    @cached_property
    def fingerprint(self) -> str:
        """Of the folder's files, their sizes and times, and of how the bands were matched."""
        filesystem, root = resolve(self._root)
        return f"{files_fingerprint(self._root, sorted(filesystem.find(root)))}:{self.bands}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image, all bands on one grid."""
        if self._known.modality not in modalities:
            return {}
        stored = np.asarray(self._sample(row)["image"].numpy(), np.float32)
        pixels = stored[list(self._match.take)] * np.float32(self._known.scale)
        pixels[is_missing(stored[list(self._match.take)], None) | (pixels == 0)] = np.nan
        return {self._known.modality: [Grid(self._match.channels, pixels)]}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over the training split."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return measured_statistics(self, training_rows(self).tolist())

    def _sample(self, row: int) -> dict[str, Any]:
        split, index = self._rows[row]
        try:
            sample: dict[str, Any] = self._parts[split][index]
        except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere
            raise UsageError(
                f"cannot read image {index} of {split} of {self.uri}: {one_line(error)}"
            ) from None
        return sample


class CopernicusImages(_Copernicus):
    """A classification set of Copernicus-Bench, with one label or several for each image."""

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) classes, or (N, C) 0 or 1."""
        found = [np.asarray(self._sample(r)["label"], np.int64) for r in range(len(self.names))]
        return np.stack(found)


class CopernicusMasks(_Copernicus):
    """A segmentation set of Copernicus-Bench; DFC2020's background does not count."""

    @property
    def ignore(self) -> int | None:
        """The label of pixels that do not count."""
        return self._known.ignore

    def mask(self, row: int) -> NDArray[np.int64]:
        """(H, W) classes."""
        return np.asarray(self._sample(row)["mask"], np.int64)


def open_copernicus(uri: str, *, check_units: bool = True) -> CopernicusImages | CopernicusMasks:
    """Opens a set of Copernicus-Bench.

    Args:
        uri: `copernicus:NAME@FOLDER`, NAME a key of `SETS`, FOLDER on a disk.
        check_units: refuse values that are no reflectance or dB.

    Raises:
        UsageError: no such set, torchgeo is missing, nothing there, other units, or files that a
            library should not open.
    """
    name, _, folder = uri.removeprefix(PREFIX).partition("@")
    if name not in SETS or not folder:
        raise UsageError(f"{uri}: expected {PREFIX}NAME@FOLDER, NAME one of {', '.join(SETS)}")
    if not is_local(folder):
        raise UsageError(f"{uri}: torchgeo reads from a disk only; copy the set to one")
    if not exists(folder):
        raise UsageError(f"folder {folder} does not exist")
    check_folder(resolve(folder)[1])
    known = SETS[name]
    opened = CopernicusMasks if known.masks else CopernicusImages
    return opened(uri, known, resolve(folder)[1], check_units)


def _library_class(name: str) -> Any:
    try:
        from torchgeo import datasets
    except ImportError:
        raise UsageError(
            "Copernicus-Bench needs torchgeo: pip install 'terrafm[copernicus]'"
        ) from None
    return getattr(datasets, name)

"""GEO-Bench-2 as it is published, in tortilla files: a folder of one set, or one of its files.

Order of bands, classes and splits are those of the package `geobenchv2` 0.9 but for what its own
statistics contradict; the pixels decide (docs/evaluation.md has the table):

- benv2: what is called VV is weaker than VH by 7 dB, so that their names are exchanged.
- so2sat: what is called VV and VH are real parts of complex numbers. They are not read.
- dynamic_earthnet: what is called B10 is bright, which the cirrus band never is. In the order of
  Sentinel-2's resolutions (10, 20, 60 m) the same numbers are a spectrum of vegetation and soil.
- treesatai: its radar, whole dB, may be stored as unsigned numbers: -6 as 65,530.
- kuro_siwo: radar is linear power.
- pastis: `geobenchv2` takes the first date where it says the last. The median of all is taken.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terrafm.data.rasters.bands import (
    BY_RESOLUTION,
    CIRRUS,
    EXCHANGED_DB,
    BandMatch,
    is_cirrus,
    match_bands,
)
from terrafm.data.rasters.opening import open_raster_bytes
from terrafm.data.rasters.units import is_missing
from terrafm.errors import UsageError
from terrafm.eval.datasets.geobench_v2_classes import CLASSES
from terrafm.eval.datasets.labelled import (
    Grid,
    Image,
    check_physical,
    files_fingerprint,
    measured_statistics,
    training_rows,
)
from terrafm.eval.datasets.library_files import check_hdf5_file
from terrafm.eval.datasets.tortilla import SUFFIX, Tortilla, read_tortilla
from terrafm.modalities import MODALITIES
from terrafm.storage import join, list_names
from terrafm.storage.faults import one_line

_FILE = re.compile(r"geobench_(\w+?)(\.\d+\.part)?\.tortilla")
_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_LOOKED_AT = 8

_ALL = MODALITIES["s2_l2a"].bands
_TEN = tuple(band for band in _ALL if band not in ("B01", "B09"))
_WITH_CIRRUS = tuple(CIRRUS if band == "B09" else band for band in _ALL)


@dataclass(frozen=True)
class _File:
    """One image of a sample: its place in it, bands in order ("" for what is none), scale.

    Attributes:
        at: position among the sample's files, or id of the file.
        bands: in the file's order, "" for what is none.
        scale: to reflectance; 1 of dB, 0 of linear power.
        series: in HDF5, (T, C, H, W).
    """

    at: int | str
    bands: tuple[str, ...]
    scale: float = 1e-4
    series: bool = False


@dataclass(frozen=True)
class _Layout:
    """What is known of a published set.

    Attributes:
        files: modality -> where it lies.
        labels: column of the class or classes; None where there are masks.
        mask: position of the mask among a sample's files.
        ignore: label of pixels that do not count.
        valid: position of a raster that is 0 where nothing was measured.
    """

    files: dict[str, _File]
    labels: str | None = None
    mask: int | None = None
    ignore: int | None = None
    valid: int | None = None

    @property
    def series(self) -> bool:
        """Whether its images, and so its masks, are in HDF5."""
        return any(file.series for file in self.files.values())


_LAYOUTS = {
    "benv2": _Layout(
        {"s1": _File(0, ("VV", "VH"), 1.0), "s2_l2a": _File(1, _ALL)}, labels="labels"
    ),
    "so2sat": _Layout({"s2_l1c": _File(1, _TEN, 1.0)}, labels="labels"),
    "treesatai": _Layout(
        {"s1": _File(1, ("VV", "VH", ""), 1.0), "s2_l2a": _File(2, BY_RESOLUTION)},
        labels="species_labels",
    ),
    "cloudsen12": _Layout({"s2_l2a": _File(0, _ALL)}, mask=1),
    "pastis": _Layout(
        {
            "s1": _File(1, ("VV", "VH", ""), 1.0, series=True),
            "s2_l2a": _File(0, _TEN, series=True),
        },
        mask=3,
        ignore=19,
    ),
    "kuro_siwo": _Layout({"s1": _File(2, ("VV", "VH"), 0.0)}, mask=4, ignore=3, valid=5),
    "dynamic_earthnet": _Layout({"s2_l2a": _File("s2", _WITH_CIRRUS)}, mask=-1),
}


class _GeoBench2:
    """What sets with classes and sets with masks share."""

    def __init__(self, uri: str, name: str, files: Sequence[str], check_units: bool) -> None:
        """Reads the tables and a few images.

        Args:
            uri: as the user named it.
            name: of the set.
            files: its tortillas.
            check_units: refuse values that are no reflectance or dB.

        Raises:
            UsageError: no samples, damaged files, or other units.
        """
        self.uri = uri
        self._files = list(files)
        self._layout = _LAYOUTS[name]
        self.classes: tuple[str, ...] = CLASSES[name]
        self._parts = [read_tortilla(file) for file in files]
        rows = [
            (part.value("tortilla:id", row), _SPLITS[split], part, row)
            for part in self._parts
            for row in range(len(part))
            if (split := part.value("tortilla:data_split", row)) in _SPLITS
        ]
        rows.sort(key=lambda found: (found[1], found[0]))
        named = [file.at for file in self._layout.files.values() if isinstance(file.at, str)]
        if named:
            # Some places of dynamic_earthnet have no Sentinel-2 image.
            rows = [r for r in rows if r[2].sample(r[3]).position(named[0]) is not None]
        if not rows:
            raise UsageError(f"{uri} holds no samples of {', '.join(_SPLITS)}")
        self._rows = [(part, row) for _, _, part, row in rows]
        self.names: Sequence[str] = [f"{split}/{name}" for name, split, _, _ in rows]
        self.splits: NDArray[np.str_] | None = np.array([split for _, split, _, _ in rows])
        self.groups = np.arange(len(rows), dtype=np.int64)
        self.modalities: tuple[str, ...] = tuple(m for m in MODALITIES if m in self._layout.files)
        self._matches = {name: self._match(name) for name in self.modalities}
        self.bands = {name: match.describe() for name, match in self._matches.items()}
        if check_units:
            check_physical(self, self.modalities)

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' sizes and times, and of how the bands were matched."""
        folder = self.uri if self.uri not in self._files else self._files[0].rpartition("/")[0]
        return f"{files_fingerprint(folder, self._files)}:{sorted(self.bands.items())}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image; each sensor on its own grid."""
        sample = self._sample(row)
        image: Image = {}
        for name in modalities:
            if name not in self._matches:
                continue
            stored = self._stored(sample, name)
            if stored is not None:
                match = self._matches[name]
                image[name] = [Grid(match.channels, stored[list(match.take)])]
        return image

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over the training split."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return measured_statistics(self, training_rows(self).tolist())

    def _sample(self, row: int) -> Tortilla:
        part, at = self._rows[row]
        return part.sample(at)

    def _stored(self, sample: Tortilla, modality: str) -> NDArray[np.float32] | None:
        """All bands of the file in physical values, NaN where nothing was measured."""
        known = self._layout.files[modality]
        at = sample.position(known.at) if isinstance(known.at, str) else known.at
        if at is None:
            return None
        raw = self._series(sample, at) if known.series else self._raster(sample, at)
        if len(raw) != len(known.bands):
            raise UsageError(
                f"{self.uri}: an image of {modality} has {len(raw)} bands, not {len(known.bands)}"
            )
        if modality == "s1" and raw.dtype == np.uint16:
            # Negative dB that were stored as unsigned numbers.
            raw = raw.view(np.int16)
        missing = is_missing(raw, None) | (raw == 0)
        if self._layout.valid is not None:
            missing |= self._raster(sample, self._layout.valid)[0] == 0
        pixels = raw.astype(np.float32)
        if known.scale == 0:
            pixels[pixels <= 0] = np.nan
            pixels = 10 * np.log10(pixels)
        else:
            pixels *= np.float32(known.scale)
        pixels[missing] = np.nan
        return pixels

    def _raster(self, sample: Tortilla, at: int) -> NDArray[Any]:
        content = sample.read(at)
        try:
            with open_raster_bytes(content) as image:
                return np.asarray(image.read())
        except (RasterioError, ValueError, OSError) as error:
            raise UsageError(f"{self.uri}: cannot read an image: {one_line(error)}") from None

    def _series(self, sample: Tortilla, at: int) -> NDArray[Any]:
        """(T, C, H, W) as its median over time; (C, H, W) as it is."""
        try:
            import h5py
        except ImportError:
            raise UsageError(f"{self.uri} is in HDF5, which needs h5py: pip install h5py") from None
        content = sample.read(at)
        try:
            with h5py.File(io.BytesIO(content), "r") as file:
                check_hdf5_file(file, len(content))
                data = np.asarray(file["data"])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UsageError(f"{self.uri}: cannot read a series: {one_line(error)}") from None
        return np.asarray(np.median(data, axis=0), np.float32) if data.ndim == 4 else data

    def _match(self, modality: str) -> BandMatch:
        """Which band of the file is which, where the pixels do not contradict."""
        named, source = self._layout.files[modality].bands, "as geobenchv2 names them"
        levels = self._levels(modality)
        if modality == "s1" and levels[1] > levels[0] + EXCHANGED_DB:
            named, source = ("VH", "VV", *named[2:]), "VV and VH exchanged, as their levels show"
        if named == _WITH_CIRRUS and not is_cirrus(levels, named.index(CIRRUS)):
            named, source = BY_RESOLUTION, "by resolution, as the bright cirrus band shows"
        return match_bands([band or "-" for band in named], modality, source, self.uri)

    def _levels(self, modality: str) -> list[float]:
        """Median of each band over the first images, physical values."""
        found = []
        for row in range(len(self._rows)):
            stored = self._stored(self._sample(row), modality)
            if stored is not None and np.isfinite(stored).any():
                found.append(stored.reshape(len(stored), -1))
            if len(found) == _LOOKED_AT:
                break
        if not found:
            raise UsageError(f"{self.uri} has no image of {modality}")
        return [float(v) for v in np.nanmedian(np.concatenate(found, axis=1), axis=1)]


class GeoBench2Images(_GeoBench2):
    """A classification set, with one label or several for each image."""

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) classes, or (N, C) 0 or 1."""
        column = str(self._layout.labels)
        given = [self._sample(row).value(column) for row in range(len(self._rows))]
        if all(isinstance(label, int) and 0 <= label < len(self.classes) for label in given):
            return np.array(given, np.int64)
        labels = np.zeros((len(given), len(self.classes)), np.int64)
        for row, names in enumerate(given):
            unknown = set(names) - set(self.classes) if isinstance(names, list) else {str(names)}
            if unknown:
                raise UsageError(
                    f"{self.uri}: unknown class {', '.join(sorted(map(str, unknown)))}"
                )
            labels[row, [self.classes.index(name) for name in names]] = 1
        return labels


class GeoBench2Masks(_GeoBench2):
    """A segmentation set."""

    @property
    def ignore(self) -> int | None:
        """The label of pixels that do not count."""
        return self._layout.ignore

    def mask(self, row: int) -> NDArray[np.int64]:
        """(H, W) classes."""
        at, sample = self._layout.mask, self._sample(row)
        assert at is not None
        found = (self._series if self._layout.series else self._raster)(sample, at)
        return np.asarray(found[0] if found.ndim == 3 else found, np.int64)


def tortillas_of(uri: str) -> list[str]:
    """The files of GEO-Bench-2 at a place: those of a folder, or the file itself."""
    if uri.endswith(SUFFIX):
        return [uri]
    return [join(uri, name) for name in list_names(uri) if _FILE.fullmatch(name)]


def open_geobench_v2(
    uri: str, files: Sequence[str], *, check_units: bool = True
) -> GeoBench2Images | GeoBench2Masks:
    """Opens a set of GEO-Bench-2.

    Args:
        uri: as the user named it.
        files: `tortillas_of` it.
        check_units: refuse values that are no reflectance or dB.

    Raises:
        UsageError: a set that is not read, several of them, parts that are missing, damaged
            files, or other units.
    """
    matches = [_FILE.fullmatch(file.rpartition("/")[2]) for file in files]
    names = sorted({match[1] if match else "another" for match in matches})
    if len(names) > 1:
        raise UsageError(f"{uri} holds several sets, {', '.join(names)}: name one of its files")
    if names[0] not in _LAYOUTS:
        raise UsageError(
            f"{uri} is no set that is read: geobench_NAME.tortilla, NAME one of "
            f"{', '.join(_LAYOUTS)}"
        )
    opened = GeoBench2Images if _LAYOUTS[names[0]].mask is None else GeoBench2Masks
    return opened(uri, names[0], files, check_units)

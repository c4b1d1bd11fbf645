"""GEO-Bench v1 as its package `geobench` stores it: HDF5 samples, partitions, pickled labels.

What the published files do not say rightly is put right here, and said in the report:

- m-eurosat: the keys after "08" are shifted by one band; B8A is last (geo-bench issue 28).
- m-brick-kiln: ten bands without B06 and B09, then a true-colour picture (geo-bench issue 29).
- m-so2sat: reflectance, not digital numbers; radar as linear power, of which the Lee-filtered
  intensities are used.

Labels and task are pickles: nothing is read before the user has said to trust them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.rasters.bands import BandMatch, match_bands
from terrafm.data.rasters.units import is_missing
from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import (
    SPLITS,
    Grid,
    Image,
    check_physical,
    files_fingerprint,
    measured_statistics,
    training_rows,
)
from terrafm.eval.datasets.library_files import check_folder, check_hdf5
from terrafm.modalities import MODALITIES
from terrafm.storage import is_local, resolve
from terrafm.storage.faults import one_line

TASK_FILE = "task_specs.pkl"
# Names under which the published files keep what is something else.
_SHIFTED = {
    "08A - Vegetation Red Edge": "B09", "09 - Water vapour": "B10", "10 - SWIR - Cirrus": "B11",
    "11 - SWIR": "B12", "12 - SWIR": "B8A",
}  # fmt: skip
_KILNS = {
    "06 - Vegetation Red Edge": "B07", "07 - Vegetation Red Edge": "B8A", "08 - NIR": "B08",
    "08A - Vegetation Red Edge": "B11", "09 - Water vapour": "B12",
    "10 - SWIR - Cirrus": "TCI_R", "11 - SWIR": "TCI_G", "12 - SWIR": "TCI_B",
}  # fmt: skip
_LEE = {"06 - VV.LEE Filtered": "VV", "05 - VH.LEE Filtered": "VH"}
_BYTE = 255
_WATER, _CIRRUS = "09 - Water vapour", "10 - SWIR - Cirrus"
# Samples that units and names are checked on.
_LOOKED_AT = 8


@dataclass(frozen=True)
class _Layout:
    """What is known of a published set: product, scale to reflectance, wrong names, nodata."""

    modality: str
    scale: float = 1e-4
    renamed: dict[str, str] = field(default_factory=dict)
    nodata: int | None = None


_LAYOUTS = {
    "m-eurosat": _Layout("s2_l1c", renamed=_SHIFTED),
    "m-brick-kiln": _Layout("s2_l2a", renamed=_KILNS),
    "m-bigearthnet": _Layout("s2_l2a"),
    "m-so2sat": _Layout("s2_l1c", scale=1.0),
    "m-cashew-plant": _Layout("s2_l2a", nodata=0),
    "m-cashew-plantation": _Layout("s2_l2a", nodata=0),
    "m-SA-crop-type": _Layout("s2_l2a", nodata=0),
}


class _GeoBench:
    """What classification and segmentation sets share."""

    def __init__(
        self, uri: str, library: Any, dataset: Any, modality: str | None, check_units: bool
    ) -> None:
        """Reads the partition and a few samples.

        Args:
            uri: folder of one set, on a disk.
            library: the package `geobench`.
            dataset: its `GeobenchDataset`, with the partition chosen.
            modality: Sentinel-2 product, for a set that is not one of the published.
            check_units: refuse values that are no reflectance.

        Raises:
            UsageError: an empty partition, no bands of the sensors, or other units.
        """
        self.uri = uri
        self._folder = Path(resolve(uri)[1])
        self._load = library.dataset.load_sample_hdf5
        self._dataset = dataset
        held = self._dataset.active_partition.partition_dict
        pairs = [(name, split) for split in SPLITS for name in held.get(split, ())]
        if not pairs:
            raise UsageError(f"the partition of {uri} holds no samples")
        self.names: Sequence[str] = [name for name, _ in pairs]
        self.splits: NDArray[np.str_] | None = np.array([split for _, split in pairs])
        self.groups = np.arange(len(pairs), dtype=np.int64)
        self.classes = _class_names(dataset.task_specs.label_type)
        self._layout = _layout(self._folder.name, modality)
        self._matches = self._match()
        self.modalities = tuple(name for name in MODALITIES if name in self._matches)
        self.bands = {name: self._matches[name].describe() for name in self.modalities}
        if check_units:
            check_physical(self, [m for m in self.modalities if m != "s1"])

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, and of how the bands were matched."""
        files = [self._file(name) for name in self.names]
        return f"{files_fingerprint(self.uri, files)}:{sorted(self.bands.items())}"

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One sample; all bands of a sensor on one grid."""
        sample = self._sample(self.names[row])
        return {
            modality: [Grid(match.channels, self._physical(sample, match))]
            for modality, match in self._matches.items()
            if modality in modalities
        }

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over the training split."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return measured_statistics(self, training_rows(self).tolist())

    def _file(self, name: str) -> str:
        return str(self._folder / f"{name}.hdf5")

    def _sample(self, name: str, label_only: bool = False) -> Any:
        try:
            check_hdf5(self._file(name))
            return self._load(Path(self._file(name)), label_only=label_only)
        except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere
            raise UsageError(f"cannot read sample {self._file(name)}: {one_line(error)}") from None

    def _match(self) -> dict[str, BandMatch]:
        first = self._sample(self.names[0])
        kinds = [type(band.band_info).__name__ for band in first.bands]
        names = [str(band.band_info.name) for band in first.bands]
        optical = [n for n, kind in zip(names, kinds, strict=True) if kind == "Sentinel2"]
        matches = {}
        if optical:
            modality = self._layout.modality
            renamed = self._renamed()
            source = "published names put right" if renamed else "by the files' band names"
            given = [renamed.get(n, n) if n in optical else "" for n in names]
            matches[modality] = match_bands(given, modality, source, self.uri)
        if set(_LEE) <= set(names):
            given = [_LEE.get(n, "") for n in names]
            source = "Lee-filtered power as 10 log10"
            matches["s1"] = match_bands(given, "s1", source, self.uri)
        if not matches:
            raise UsageError(
                f"{self.uri} has no bands of Sentinel-1 or Sentinel-2: {', '.join(names)}"
            )
        self._band_names = names
        return matches

    def _renamed(self) -> dict[str, str]:
        """The wrong names, where these files have them: the pixels tell."""
        wrong = self._layout.renamed
        if not wrong:
            return {}
        levels: dict[str, list[NDArray[Any]]] = {}
        for name in self.names[:_LOOKED_AT]:
            for band in self._sample(name).bands:
                levels.setdefault(str(band.band_info.name), []).append(np.asarray(band.data))
        if not set(wrong) <= set(levels):
            return {}
        if wrong is _KILNS:
            pictures = [key for key, band in _KILNS.items() if band.startswith("TCI")]
            return wrong if max(np.max(levels[key]) for key in pictures) <= _BYTE else {}
        # Air swallows what the cirrus band sees: it is by far the darkest.
        cirrus = np.mean(levels[_WATER]) < np.mean(levels[_CIRRUS])
        return wrong if cirrus else {}

    def _physical(self, sample: Any, match: BandMatch) -> NDArray[np.float32]:
        names = [str(band.band_info.name) for band in sample.bands]
        if names != self._band_names:
            raise UsageError(
                f"sample {sample.sample_name} of {self.uri} has other bands than the first"
            )
        stored = np.stack([np.asarray(sample.bands[at].data) for at in match.take])
        pixels = stored.astype(np.float32)
        if match.modality == "s1":
            pixels[is_missing(pixels, None) | (pixels <= 0)] = np.nan
            return np.asarray(10 * np.log10(pixels), np.float32)
        pixels[is_missing(stored, None) | (stored == 0)] = np.nan
        return pixels * np.float32(self._layout.scale)


class GeoBenchImages(_GeoBench):
    """A classification set of GEO-Bench v1, with one label or several for each image."""

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) classes, or (N, C) 0 or 1."""
        found = []
        for name in self.names:
            label = np.asarray(self._sample(name, label_only=True).label)
            if label.dtype.kind not in "iufb" or label.ndim > 1:
                raise UsageError(f"sample {name} of {self.uri} has no class as its label")
            found.append(label.astype(np.int64))
        if len({label.shape for label in found}) > 1:
            raise UsageError(f"samples of {self.uri} have labels of unlike length")
        return np.stack(found)


class GeoBenchMasks(_GeoBench):
    """A segmentation set of GEO-Bench v1; the nodata class of the published sets does not count."""

    @property
    def ignore(self) -> int | None:
        """The label of pixels without data."""
        return self._layout.nodata

    def mask(self, row: int) -> NDArray[np.int64]:
        """(H, W) classes."""
        label = self._sample(self.names[row], label_only=True).label
        mask = np.asarray(getattr(label, "data", None))
        if mask.ndim != 2:
            raise UsageError(f"sample {self.names[row]} of {self.uri} has no mask as its label")
        return mask.astype(np.int64)


def open_geobench(
    uri: str,
    *,
    trust_pickles: bool = False,
    partition: str = "default",
    modality: str | None = None,
    check_units: bool = True,
) -> GeoBenchImages | GeoBenchMasks:
    """Opens a set of GEO-Bench v1 as what its task says: classes or masks.

    Args:
        uri: folder of one set, on a disk.
        trust_pickles: the user's word that these files may be unpickled.
        partition: "default", or "0.01x_train" to "1.00x_train".
        modality: Sentinel-2 product, for a set that is not one of the published.
        check_units: refuse values that are no reflectance.

    Raises:
        UsageError: no consent, `geobench` is missing, an unknown partition, no bands of the
            sensors, other units, or files that a library should not open.
    """
    if not trust_pickles:
        raise UsageError(
            f"{uri} keeps its labels as pickles, and a pickle from a stranger can run any code: "
            "add --trust-pickles where you trust who wrote it"
        )
    if not is_local(uri):
        raise UsageError(f"{uri}: geobench reads from a disk only; copy the set to one")
    library = _library()
    check_folder(resolve(uri)[1], samples=False)
    try:
        with warnings.catch_warnings():
            # Of wrong band names, which are put right here.
            warnings.simplefilter("ignore", UserWarning)
            dataset = library.GeobenchDataset(resolve(uri)[1], partition_name=partition)
        kind = type(dataset.task_specs.label_type).__name__
    except Exception as error:  # noqa: BLE001 - a broken pickle or JSON can fail anywhere
        raise UsageError(f"cannot open {uri}: {one_line(error)}") from None
    opened = GeoBenchMasks if "Segmentation" in kind else GeoBenchImages
    return opened(uri, library, dataset, modality, check_units)


def _library() -> Any:
    try:
        import geobench
    except ImportError:
        raise UsageError(
            "GEO-Bench sets need the package geobench: pip install 'terrafm[eval]' with Python "
            "3.12 or later"
        ) from None
    return geobench


def _layout(name: str, modality: str | None) -> _Layout:
    if name in _LAYOUTS:
        known = _LAYOUTS[name]
        if modality is not None and modality not in (known.modality, "s1"):
            raise UsageError(f"{name} is {known.modality}, not {modality}")
        return known
    if modality is None:
        raise UsageError(
            f"{name} is none of {', '.join(_LAYOUTS)}: say with --modality whether its "
            "Sentinel-2 is s2_l1c or s2_l2a"
        )
    return _Layout(modality if modality != "s1" else "s2_l1c")


def _class_names(label_type: Any) -> tuple[str, ...]:
    given = getattr(label_type, "class_names", None) or getattr(label_type, "class_name", None)
    if given:
        return tuple(str(name) for name in given)
    count = getattr(label_type, "n_classes", None)
    if not count:
        raise UsageError(f"its task has no classes: {type(label_type).__name__}")
    return tuple(f"class {i}" for i in range(int(count)))

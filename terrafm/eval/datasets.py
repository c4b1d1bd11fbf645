"""Labelled image sets for evaluation: EuroSAT-MS folders, and datasets of our own ingest.

Both give images in physical units (reflectance, dB) in the model's band order, NaN where there is
no data, bands at their native grids.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import rasterio.errors
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join, list_names, read_bytes

# Sentinel-2 L1C as EuroSAT's authors stored it: B8A comes last.
EUROSAT_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
)  # fmt: skip
_IMAGE_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Grid:
    """Bands of one modality that share a pixel grid.

    Attributes:
        channels: positions of the bands in the modality's model order.
        pixels: (len(channels), h, w) float32 in physical units, NaN where there is no data.
    """

    channels: tuple[int, ...]
    pixels: NDArray[np.float32]


Image = dict[str, list[Grid]]  # modality -> its grids


class LabelledSet(Protocol):
    """Images with one class each.

    Attributes:
        uri: where it lies.
        labels: (N,) int64, positions in `classes`.
        classes: class names.
        groups: (N,) int64, images of one place share a number.
        modalities: those that the set has, in the order of `MODALITIES`.
        bands: modality -> how its bands were mapped, for the reader of a result.
    """

    uri: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[np.int64]
    modalities: tuple[str, ...]
    bands: dict[str, str]

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image; modalities that it does not have are left out.

        Raises:
            TerraFMError: it cannot be read; names it.
        """
        ...

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Modality -> {"mean", "std"} per band in model order, physical units."""
        ...


def open_labelled(uri: str | os.PathLike[str]) -> LabelledSet:
    """Opens a labelled set: a dataset of ingest if it has a manifest, else an EuroSAT folder.

    Raises:
        UsageError: it does not exist, holds no images, or fewer than two classes.
    """
    uri = os.fspath(uri).rstrip("/")
    if not exists(uri):
        raise UsageError(f"labelled set {uri} does not exist")
    # An unfinished ingest has shards but no manifest: opening it says so.
    ours = exists(join(uri, "manifest.json")) or exists(join(uri, "shards"))
    opened: LabelledSet = ShardTiles(uri) if ours else EuroSat(uri)
    present = len(np.unique(opened.labels))
    if present < 2:
        raise UsageError(
            f"labelled set {uri} has {present} class: nearest neighbours need two or more"
        )
    return opened


class EuroSat:
    """EuroSAT-MS: a folder per class, GeoTIFFs of 13 bands of Sentinel-2 L1C digital numbers.

    The scenes are older than the +1000 offset: reflectance = digital number / 10000; 0 is
    nodata. B10 is dropped, B8A moves from the last place to its place in the model's order.
    """

    def __init__(self, uri: str) -> None:
        """Lists the images, in the order of class and file name.

        Raises:
            UsageError: no class folder holds a GeoTIFF.
        """
        self.uri = uri
        self.files: list[str] = []
        labels: list[int] = []
        classes: list[str] = []
        for name in list_names(uri):
            folder = join(uri, name)
            images = [
                join(folder, file)
                for file in list_names(folder)
                if file.lower().endswith(_IMAGE_SUFFIXES)
                and not file.startswith(".")
                and not name.lower().endswith(_IMAGE_SUFFIXES)
            ]
            if images:
                labels += [len(classes)] * len(images)
                classes.append(name)
                self.files += images
        if not self.files:
            raise UsageError(
                f"no images under {uri}: expected a folder per class with GeoTIFFs of 13 bands "
                "(EuroSAT-MS), or a dataset made by terrafm ingest"
            )
        self.labels = np.array(labels, np.int64)
        self.classes = tuple(classes)
        self.groups = np.arange(len(labels), dtype=np.int64)
        self.modalities: tuple[str, ...] = ("s2_l1c",)
        order = MODALITIES["s2_l1c"].bands
        self._take = [EUROSAT_BANDS.index(band) for band in order]
        self.bands = {
            "s2_l1c": f"file {' '.join(EUROSAT_BANDS)} -> model {' '.join(order)}; B10 dropped"
        }

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image, all bands on one grid; empty without "s2_l1c" in `modalities`."""
        if "s2_l1c" not in modalities:
            return {}
        pixels = MODALITIES["s2_l1c"].to_physical(self._digital_numbers(row)[self._take])
        return {"s2_l1c": [Grid(tuple(range(len(pixels))), pixels)]}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Computed over all images in one pass."""
        return {"s2_l1c": self._statistics}

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        count = np.zeros(len(self._take))
        total, square = count.copy(), count.copy()
        for row in range(len(self.files)):
            pixels = self.read(row, self.modalities)["s2_l1c"][0].pixels.astype(np.float64)
            count += np.isfinite(pixels).sum((1, 2))
            total += np.nansum(pixels, (1, 2))
            square += np.nansum(pixels**2, (1, 2))
        mean = total / np.maximum(count, 1)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
        # A band without any spread says nothing; dividing by 1 leaves it at zero.
        std = np.where(spread > 0, spread, 1.0)
        return {"mean": mean.tolist(), "std": std.tolist()}

    def _digital_numbers(self, row: int) -> NDArray[np.generic]:
        file = self.files[row]
        try:
            with MemoryFile(read_bytes(file)) as memory, memory.open() as image:
                pixels: NDArray[np.generic] = image.read()
        except (rasterio.errors.RasterioError, OSError, ValueError) as error:
            raise UsageError(f"cannot read image {file}: {error}") from None
        if pixels.shape[0] != len(EUROSAT_BANDS):
            raise UsageError(
                f"image {file} has {pixels.shape[0]} bands, EuroSAT-MS has {len(EUROSAT_BANDS)}"
            )
        if pixels.dtype.kind not in "ui":
            raise UsageError(
                f"image {file} is {pixels.dtype}, EuroSAT-MS holds digital numbers (integers)"
            )
        return pixels


class ShardTiles:
    """A dataset of ingest as a labelled set: the label of a tile is its majority class."""

    def __init__(self, uri: str) -> None:
        """Opens the dataset.

        Raises:
            UsageError: as `Dataset.open`.
        """
        from terrafm.data.shards.dataset import Dataset

        self.uri = uri
        self.dataset = Dataset.open(uri)
        codes, labels = np.unique(self.dataset.land_cover, return_inverse=True)
        self.labels = labels.astype(np.int64)
        legend = self.dataset.legend
        self.classes = tuple(legend.get(int(code), f"class {code}") for code in codes)
        # A tile's id is its cell's with row and column appended.
        cells = [str(tile).rsplit("_", 2)[0] for tile in self.dataset.tile_ids]
        self.groups = np.unique(cells, return_inverse=True)[1].astype(np.int64)
        self.modalities: tuple[str, ...] = tuple(self.dataset.modalities)
        self.bands = {
            name: f"shards, model order {' '.join(MODALITIES[name].bands)}"
            for name in self.modalities
        }

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One tile; the bands of each GSD are a grid of their own."""
        arrays = self.dataset.read_tile(row, modalities)
        image: Image = {}
        for group in self.dataset.groups:
            if group.name not in arrays:
                continue
            modality = MODALITIES[group.modality]
            channels = tuple(modality.bands.index(band) for band in group.bands)
            grid = Grid(channels, modality.to_physical(arrays[group.name]))
            image.setdefault(group.modality, []).append(grid)
        return image

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As ingest stored them in the manifest."""
        return self.dataset.statistics

"""GeoTIFFs of any size as a source of tiles: sliding windows, read where they lie."""

import hashlib
import os
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.geotiff import SUFFIXES, Header, OpenGeotiff, Stored
from terrafm.data.rasters.opening import open_raster
from terrafm.data.rasters.units import Decision
from terrafm.data.sources.offsets import spread
from terrafm.data.sources.raster import why_no_place
from terrafm.data.sources.sensor_files import SensorFiles
from terrafm.embed.hilbert import hilbert_index, hilbert_order
from terrafm.embed.rows import footprint
from terrafm.embed.source import Affine, Place
from terrafm.embed.windows import Windows
from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.datasets.labelled import Grid, Image, files_fingerprint, measured_statistics
from terrafm.storage import join, resolve
from terrafm.storage.clutter import is_clutter

_THREADS = 16
# Windows of which statistics are taken where the data's own are asked for.
_MEASURED = 256
# Megabytes of decoded blocks that GDAL keeps: neighbouring windows share them.
_CACHE = 256


@dataclass(frozen=True)
class GeoTiff:
    """A file without its pixels.

    Attributes:
        uri: where it lies.
        name: relative to what was asked for, without suffix.
        header: bands, unit and pixel size.
        shape: rows and columns.
        crs: authority string or WKT.
        transform: affine coefficients (a, b, c, d, e, f).
        time: of acquisition, where the file tells.
    """

    uri: str
    name: str
    header: Header
    shape: tuple[int, int]
    crs: str
    transform: Affine
    time: datetime | None


class GeoTiffWindows:
    """Windows of one or many GeoTIFFs of one sensor, each on its file's own grid.

    Files may lie in different zones; bands, pixel size and the kind of CRS must be those of the
    first. How bands, units and offsets are known is told by `terrafm.data.rasters`.
    """

    kind: Literal["dataset", "geotiff"] = "geotiff"

    def __init__(
        self,
        uri: str,
        *,
        modality: str | None,
        bands: Sequence[str] | None,
        window: int | None,
        overlap: int | None,
        size: int,
        dense: bool,
    ) -> None:
        """Reads the headers of all files.

        Args:
            uri: a folder, searched with all its subfolders, or a file.
            modality: of the files; by default what their bands say.
            bands: names of their bands, in their order.
            window: side of a window, pixels; by default `size`, or less where all files are less.
            overlap: of neighbouring windows, pixels.
            size: side of the model's input, pixels.
            dense: patches of all windows must lie on one grid.

        Raises:
            UsageError: no GeoTIFF is there, one cannot be read, has no CRS or does not fit the
                first, or the windows are impossible.
        """
        self.uri = uri
        uris = _list(uri)
        with ThreadPoolExecutor(_THREADS) as threads:
            self.files = list(threads.map(partial(_describe, uri), uris))
        first = self.files[0]
        for file in self.files[1:]:
            file.header.check_like(first.header, file.uri, first.uri)
        _check_names(self.files)
        with ThreadPoolExecutor(_THREADS) as threads:
            some = [self.files[at].uri for at in spread(len(self.files))]
            samples = dict(zip(some, threads.map(_sample, some), strict=True))
        self._reader = SensorFiles.of(samples, modality, bands)
        # Neighbours of the ground follow each other; by now the first file has been the model.
        self.files = _along_curve(self.files)
        largest = max(max(file.shape) for file in self.files)
        self.windows = Windows.choose(window or min(size, largest), overlap, size, dense)
        counts = [len(self._starts(file)[0]) * len(self._starts(file)[1]) for file in self.files]
        self.first_rows = [0, *accumulate(counts)]
        match = self._reader.match
        self.modalities: tuple[str, ...] = (match.modality,)
        self.bands = {match.modality: match.describe()}
        self.classes: tuple[str, ...] = ()
        self.splits: NDArray[np.str_] | None = None
        self.legend: dict[int, str] = {}
        self.options: dict[str, Any] = {
            "window": self.windows.side,
            "overlap": self.windows.overlap,
            "bands": self.bands[match.modality],
            "pixels": self._reader.to_json(),
        }
        first = self.files[0]
        is_metric = CRS.from_user_input(first.crs).is_projected
        self.gsd: float | None = abs(first.transform[0]) if is_metric else None
        side, step = self.windows.side, self.windows.side - self.windows.overlap
        # The last windows of a row or column end with the image.
        self.chip_layout: dict[str, Any] = {
            "layout_type": "variable_grid", "chip_size": [side, side], "stride": [step, step],
        }  # fmt: skip
        self._open: tuple[str, OpenGeotiff, Decision] | None = None

    def __len__(self) -> int:
        return self.first_rows[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times: reading them all costs what embedding costs."""
        found = files_fingerprint(self.uri, sorted(file.uri for file in self.files))
        return hashlib.sha256(found.encode()).hexdigest()

    @property
    def names(self) -> Sequence[str]:
        """(N,) ids of the windows."""
        return [self.place(row).tile_id for row in range(len(self))]

    @property
    def groups(self) -> NDArray[np.int64]:
        """(N,) windows of one file share a number."""
        return np.repeat(np.arange(len(self.files)), np.diff(self.first_rows))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(N,) windows: file by file along a Hilbert curve, and in each along one of its own.

        A file is not left before all its windows are read, so that it is opened once.
        """
        parts = [np.zeros(0, np.int64)]
        for number, file in enumerate(self.files):
            rows, columns = (np.array(starts) for starts in self._starts(file))
            y, x = np.meshgrid(rows, columns, indexing="ij")
            # The curve needs a square, or it would be long in one direction.
            side = max(file.shape)
            places = hilbert_index(x.ravel() / side, y.ravel() / side)
            parts.append(self.first_rows[number] + np.argsort(places, kind="stable"))
        return np.concatenate(parts)

    def corner(self, row: int) -> tuple[int, int, int]:
        """Number of the file, and which of its row and column starts a window has."""
        number = bisect_right(self.first_rows, row) - 1
        columns = len(self._starts(self.files[number])[1])
        return number, *divmod(row - self.first_rows[number], columns)

    def place(self, row: int) -> Place:
        """Where a window lies; what sticks out of the image is not part of it."""
        number, at_row, at_column = self.corner(row)
        file = self.files[number]
        rows, columns = self._starts(file)
        top, left = rows[at_row], columns[at_column]
        height = min(self.windows.side, file.shape[0] - top)
        width = min(self.windows.side, file.shape[1] - left)
        a, b, c, d, e, f = file.transform
        modality = self._reader.modality
        return Place(
            tile_id=f"{file.name}_r{top}_c{left}",
            crs=file.crs,
            transform=(a, b, a * left + b * top + c, d, e, d * left + e * top + f),
            shape=(height, width),
            source=file.uri,
            times={} if file.time is None else {modality: file.time},
            window=(left, top, width, height),
        )

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One window; NaN where it sticks out of the image.

        Raises:
            TerraFMError: the file cannot be read.
        """
        reader = self._reader
        if reader.modality not in modalities:
            return {}
        place = self.place(row)
        assert place.window is not None
        try:
            image, decision = self._opened(place.source)
            stored = image.read(Window(*place.window))
        except (RasterioError, OSError, ValueError) as error:
            raise TerraFMError(f"cannot read image {place.source}: {error}") from None
        pixels = reader.physical(place.source, stored, decision)
        side = self.windows.side
        missing = [(0, 0), (0, side - place.shape[0]), (0, side - place.shape[1])]
        padded = np.pad(pixels, missing, constant_values=np.nan)
        return {reader.modality: [Grid(reader.match.channels, padded)]}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Of all windows, or of 256 that are spread evenly where they are more."""
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, Any]]:
        return self.sampled_statistics(_MEASURED)

    def sampled_statistics(self, most: int) -> dict[str, dict[str, Any]]:
        """Of so many windows at most, spread evenly."""
        rows = np.unique(np.linspace(0, len(self) - 1, most).round().astype(int))
        return measured_statistics(self, rows.tolist())

    def _starts(self, file: GeoTiff) -> tuple[list[int], list[int]]:
        return self.windows.starts(file.shape[0]), self.windows.starts(file.shape[1])

    def _opened(self, uri: str) -> tuple[OpenGeotiff, Decision]:
        """The file, which stays open for the windows that follow, and what its pixels mean."""
        if self._open is None or self._open[0] != uri:
            if self._open is not None:
                self._open[1].close()
            # GDAL would take a twentieth of the machine for every worker.
            with rasterio.Env(GDAL_CACHEMAX=_CACHE):
                image = OpenGeotiff(uri)
            decision = self._reader.decided.get(uri) or self._reader.decide(uri, image.sample())
            self._open = uri, image, decision
        return self._open[1:]


def _list(uri: str) -> list[str]:
    filesystem, path = resolve(uri)
    if not filesystem.isdir(path):
        return [uri]
    found = sorted(
        file.removeprefix(path).lstrip("/")
        for file in filesystem.find(path)
        if file.lower().endswith(SUFFIXES)
    )
    found = [file for file in found if not any(map(is_clutter, file.split("/")))]
    if not found:
        raise UsageError(
            f"nothing to embed under {uri}: no GeoTIFF, and no dataset made by terrafm ingest"
        )
    return [join(uri, file) for file in found]


def _describe(root: str, uri: str) -> GeoTiff:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with open_raster(uri) as image:
                if why := why_no_place(image):
                    raise UsageError(f"image {uri} {why}")
                a, b, c, d, e, f = (float(value) for value in tuple(image.transform)[:6])
                tags = {**image.tags(ns="IMAGERY"), **image.tags()}
                inside = uri.removeprefix(root).lstrip("/") or os.path.basename(uri)
                return GeoTiff(
                    uri=uri,
                    name=inside.rpartition(".")[0],
                    header=Header.of(image),
                    shape=(image.height, image.width),
                    crs=image.crs.to_string(),
                    transform=(a, b, c, d, e, f),
                    time=parse_time(tags.get("datetime", tags.get("ACQUISITIONDATETIME", ""))),
                )
    except (RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {uri}: {error}") from None


def _sample(uri: str) -> Stored:
    try:
        with closing(OpenGeotiff(uri)) as image:
            return image.sample()
    except (RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {uri}: {error}") from None


def _along_curve(files: Sequence[GeoTiff]) -> list[GeoTiff]:
    places = [
        footprint(Place(file.name, file.crs, file.transform, file.shape, file.uri)).centroid
        for file in files
    ]
    order = hilbert_order([place.x for place in places], [place.y for place in places])
    return [files[row] for row in order.tolist()]


def _check_names(files: Sequence[GeoTiff]) -> None:
    seen: dict[str, str] = {}
    for file in files:
        if file.name in seen:
            raise UsageError(
                f"{file.uri} and {seen[file.name]} differ in their suffix alone: rename one"
            )
        seen[file.name] = file.uri

"""Cities of the Onera Satellite Change Detection set, two dates each, as an archive to ingest.

    ARCHIVE/paris/imgs_1/..._B01.tif .. B12.tif, B8A.tif   Level-1C, one file a band
    ARCHIVE/paris/s1_vv/orbit59_t1.tif                     radar, VV only, hundredths of a dB
    ARCHIVE/paris/imgs_2/, s1_vv/orbit59_t2.tif            the same place at another date

    terrafm ingest --source harness.oscd:OscdCities --input "$OSCD?without=paris,pisa" ...

A city at one date is a cell, `paris_1`; its tiles share their places with those of `paris_2`.
The files are stamped in EPSG:4326 with an approximate scale; a
pixel is 10, 20 or 60 m in truth, and bands are laid on each other pixel by pixel. The dates of
all cities but three (abudhabi, hongkong, saclay_*: up to 8 px at the far edges) agree within 2 px.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Product
from terrafm.data.sources.raster import Patch, read_patch
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join, list_names

DATES = (1, 2)
TREES, GRASS, BARE, WATER = 10, 30, 60, 80
"""Classes that stand for land cover, of which the archive has none, by WorldCover's codes."""

# Bounds of NDWI (above: water) and NDVI (above: trees, grass); built-up ground is bare by these.
_WET, _GREEN, _GREENISH = 0.0, 0.6, 0.3

_GSD = 10
_COARSEST = 60
_CIRRUS = "B10"
_RADAR = "s1_vv"
_TIME = re.compile(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})")
_ORBIT = re.compile(r"orbit(\d+)_t(\d)\.tif$")


class OscdCities:
    """Level-1C and Sentinel-1 VV of cities at two dates.

    Args:
        uri: the archive, and after a question mark which of its cities: `cities=paris,pisa`, or
            `without=paris,pisa`.
        modalities: those to read; there is no Level-2A.
    """

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri, _, query = uri.partition("?")
        self._wanted = _split(parse_qs(query).get("cities"))
        self._left_out = _split(parse_qs(query).get("without"))
        self._modalities = tuple(m for m in modalities if m in ("s1", "s2_l1c"))

    def cities(self) -> list[str]:
        """Names of the chosen cities.

        Raises:
            UsageError: no such archive, or no such city.
        """
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        there = sorted(list_names(self._uri))
        unknown = sorted((self._wanted | self._left_out) - set(there))
        if unknown:
            raise UsageError(f"{self._uri} has no {', '.join(unknown)}; cities: {', '.join(there)}")
        return [c for c in there if c not in self._left_out and c in (self._wanted or there)]

    def layout(self) -> Layout:
        """10 m, and the size of the first city; land cover is one class."""
        bands = {m: MODALITIES[m].gsd for m in self._modalities}
        first = self.read(self.cells()[0])
        return Layout(gsd=_GSD, shape=first.shape, band_gsd=bands, land_cover=True)

    def cells(self) -> list[CellRef]:
        """Every city at both dates, by name."""
        refs = []
        for city in self.cities():
            radar = _radar_files(join(self._uri, city, _RADAR))
            for date in DATES:
                files: dict[str, Any] = {"s2_l1c": join(self._uri, city, f"imgs_{date}")}
                if date in radar:
                    files["s1"] = radar[date]
                present = tuple(m for m in self._modalities if m in files)
                if present:
                    refs.append(CellRef(f"{city}_{date}", files, present))
        if not refs:
            raise UsageError(f"{self._uri}: no city with {', '.join(self._modalities)}")
        return refs

    def read(self, ref: CellRef) -> Cell:
        """Reads both products of a city at one date.

        Raises:
            BadCellError: the Level-1C product, which gives the grid, cannot be read.
        """
        folder = ref.location["s2_l1c"]
        names = {n.rpartition("_")[2].removesuffix(".tif"): n for n in list_names(folder)}
        expected = (*MODALITIES["s2_l1c"].bands, _CIRRUS)
        if absent := [band for band in expected if band not in names]:
            raise BadCellError(folder, f"no {', '.join(absent)}")
        patches = {band: read_patch(join(folder, names[band])) for band in expected}
        shape = _common_shape(patches)
        products, faults = {}, {}
        land_cover = _land_cover(patches, shape)
        if "s2_l1c" in ref.modalities:
            products["s2_l1c"] = _optical(patches, shape, _time(names["B02"]))
        if "s1" in ref.modalities:
            try:
                products["s1"] = _radar(ref.location["s1"], patches["B02"], shape)
            except BadCellError as fault:
                faults["s1"] = fault
        return Cell(
            cell_id=ref.cell_id,
            crs=patches["B02"].crs,
            transform=patches["B02"].transform,
            shape=shape,
            gsd=_GSD,
            products=products,
            faults=faults,
            land_cover=land_cover,
            place=ref.cell_id.rpartition("_")[0],
        )


def _split(values: list[str] | None) -> set[str]:
    return {name for value in values or () for name in value.split(",") if name}


def _radar_files(folder: str) -> dict[int, str]:
    """Date -> the file of the first relative orbit, of those seen at both dates where any is."""
    orbits: dict[int, dict[int, str]] = {}
    for name in list_names(folder) if exists(folder) else ():
        if match := _ORBIT.search(name):
            orbits.setdefault(int(match[1]), {})[int(match[2])] = join(folder, name)
    chosen: dict[int, str] = {}
    for files in sorted(orbits.values(), key=len, reverse=True):
        chosen = files | chosen
    return chosen


def _common_shape(patches: dict[str, Patch]) -> tuple[int, int]:
    """Rows and columns at 10 m that all bands cover, in whole pixels of 60 m."""
    sensor = MODALITIES["s2_l1c"]
    gsd = dict(zip(sensor.bands, sensor.gsd, strict=True)) | {_CIRRUS: _COARSEST}
    covered = np.array([np.array(patches[b].pixels.shape) * gsd[b] for b in gsd])
    rows, columns = covered.min(axis=0) // _COARSEST * (_COARSEST // _GSD)
    return int(rows), int(columns)


def _optical(patches: dict[str, Patch], shape: tuple[int, int], time: str) -> Product:
    sensor = MODALITIES["s2_l1c"]
    gsd = dict(zip(sensor.bands, sensor.gsd, strict=True))
    sides = {g: tuple(side * _GSD // g for side in shape) for g in sensor.gsd}
    return Product(
        "s2_l1c",
        {b: patches[b].measured("s2_l1c")[: sides[g][0], : sides[g][1]] for b, g in gsd.items()},
        gsd,
        time=time,
        cirrus=patches[_CIRRUS].measured("s2_l1c"),
    )


def _land_cover(patches: dict[str, Patch], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Classes of a pixel by NDWI and NDVI of the date: what the plan and its centers balance."""
    window = np.s_[: shape[0], : shape[1]]
    bands = [patches[band].measured("s2_l1c")[window] for band in ("B03", "B04", "B08")]
    green, red, infrared = (band.astype(np.float32) for band in bands)
    ndwi = (green - infrared) / np.maximum(green + infrared, 1)
    ndvi = (infrared - red) / np.maximum(infrared + red, 1)
    conditions = [ndwi > _WET, ndvi > _GREEN, ndvi > _GREENISH]
    return np.select(conditions, [WATER, TREES, GRASS], BARE).astype(np.uint8)


def _radar(file: str, grid: Patch, shape: tuple[int, int]) -> Product:
    """VV in dB on the grid of a 10 m band, bilinear between the radar's own pixels."""
    patch = read_patch(file)
    power = np.full(shape, np.nan, dtype=np.float32)
    (nodata,) = patch.stored.header.nodata
    source: NDArray[np.float32] = np.where(
        patch.pixels == nodata, np.nan, patch.pixels / 100.0
    ).astype(np.float32)
    reproject(
        source,
        power,
        src_transform=Affine(*patch.transform),
        src_crs=CRS.from_string(patch.crs),
        src_nodata=np.nan,
        dst_transform=Affine(*grid.transform),
        dst_crs=CRS.from_string(grid.crs),
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )
    return Product("s1", {"VV": power}, {"VV": _GSD})


def _time(name: str) -> str:
    match = _TIME.search(name)
    return "{}-{}-{}T{}:{}:{}+00:00".format(*match.groups()) if match else ""

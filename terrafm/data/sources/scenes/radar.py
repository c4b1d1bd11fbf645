"""Sentinel-1 as users have it: terrain-corrected backscatter, a GeoTIFF for each polarisation.

Known by their names: ASF's HyP3 (`S1A_IW_20201003T150658_DVP_RTC30_G_gpuned_11F3_VV.tif`), OPERA
RTC-S1 (`OPERA_L2_RTC-S1_T069-147170-IW1_..._VV.tif`), Planetary Computer
(`S1A_IW_GRDH_..._rtc/measurement/iw-vv.rtc.tiff`) and SNAP's exports, one file for all
polarisations or one for each. Anything else that names Sentinel-1 and a polarisation is read too.
"""

import re
from dataclasses import dataclass

import numpy as np
from pyproj import Transformer

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.bands import canonical
from terrafm.data.sources.folders import for_all
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.open_layers import read_header
from terrafm.data.sources.scenes.product_files import ProductFiles
from terrafm.data.sources.scenes.scene import Layer, Scene
from terrafm.modalities import MODALITIES

SUFFIXES = (".tif", ".tiff")
_SENSOR = re.compile(r"(?<![A-Za-z0-9])S1[A-D](?![A-Za-z0-9])|OPERA_L2_RTC-S1")
_RAW = re.compile(r"S1[A-D]_(?:IW|EW|WV|S[1-6])_(GRD[FHM]|SLC_|RAW_|OCN_)_\w+(?:\.SAFE)?$", re.I)
_POLARISATION = re.compile(r"(?<![A-Za-z0-9])(VV|VH|HH|HV)(?![A-Za-z0-9])", re.I)
_TIME = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})")
_HYP3 = re.compile(r"_RTC\d+_[A-Z]_[gsb]([pad])[a-z]{4}_")
_AMPLITUDE = re.compile(r"(?<![A-Za-z0-9])amp(?:litude)?(?![A-Za-z0-9])", re.I)
_LAYERS = re.compile(
    r"(?<![A-Za-z0-9])(ls_map|inc_map|dem|rgb|mask|area|browse|local_incidence_angle|"
    r"number_of_looks|rtc_anf\w*)(?![A-Za-z0-9])",
    re.I,
)


@dataclass(frozen=True)
class RadarFile:
    """A GeoTIFF whose name, or whose folders' names, say Sentinel-1.

    Attributes:
        files: the folder or zip that it lies in.
        path: inside that.
        product: name that tells the acquisition.
    """

    files: ProductFiles
    path: str
    product: str


def raw_product(name: str) -> str | None:
    """The kind of a raw product ("GRDH", "SLC") that a folder or zip is named after; else None."""
    found = _RAW.match(name)
    return found.group(1).strip("_").upper() if found else None


def how_to_correct(where: str, kind: str) -> str:
    """What is told of a raw product."""
    return (
        f"{where} is a raw Sentinel-1 {kind} product, which lies on no map and is not calibrated: "
        "run terrain correction first (SNAP: gpt with Apply-Orbit-File, Calibration to gamma0, "
        "Terrain-Correction to 10 m UTM; or HyP3's RTC) and put its VV and VH GeoTIFFs there "
        "instead, or leave radar out with --modalities"
    )


def radar_file(files: ProductFiles, path: str) -> RadarFile | None:
    """A GeoTIFF that is one of Sentinel-1's, by name; None for any other."""
    stem, _, suffix = path.rpartition(".")
    if f".{suffix.lower()}" not in SUFFIXES or _LAYERS.search(stem.rpartition("/")[2]):
        return None
    # The file's own name first, then the folders', the nearest first.
    names = [*reversed(stem.split("/")), *reversed(files.uri.rstrip("/").split("/")[-3:])]
    product = next((name for name in names if _SENSOR.search(name)), None)
    return None if product is None else RadarFile(files, path, product)


def radar_scenes(
    found: list[RadarFile],
) -> tuple[list[Scene], list[tuple[str, str, BadCellError]]]:
    """Scenes of files that belong together, and files that cannot be used.

    Only headers are read.
    """
    groups: dict[str, list[RadarFile]] = {}
    for file in found:
        folder, _, name = file.path.rpartition("/")
        key = f"{file.files.where(folder)}/{_POLARISATION.sub('', name)}"
        groups.setdefault(key, []).append(file)
    scenes, broken = [], []
    ordered = [groups[key] for key in sorted(groups)]
    for group, result in zip(ordered, for_all(_scene, ordered), strict=True):
        if isinstance(result, BadCellError):
            name = _POLARISATION.sub("", group[0].product).strip("_-.")
            broken.append((f"s1 {name}", "s1", result))
        elif result is not None:
            scenes.append(result)
    return scenes, broken


def _scene(group: list[RadarFile]) -> Scene | BadCellError | None:
    layers: dict[str, Layer] = {}
    grids: dict[str, Grid] = {}
    first = group[0]
    where = first.files.where(first.path)
    for file in sorted(group, key=lambda f: f.path):
        layer = file.files.layer(file.path)
        try:
            grid, header = read_header(layer)
        except BadCellError as fault:
            return fault
        stem = file.path.rpartition("/")[2]
        labelled = [canonical(name, "s1") if name else None for name in header.names]
        named = _POLARISATION.findall(stem)
        if not any(labelled) and len(named) == header.count:
            labelled = [name.upper() for name in named]
        elif not any(labelled) and header.count == len(MODALITIES["s1"].bands) and not named:
            labelled = list(MODALITIES["s1"].bands)
        for number, band in zip(header.indexes, labelled, strict=True):
            if band not in MODALITIES["s1"].bands:
                continue
            if band in layers:
                return BadCellError(
                    file.files.where(file.path), f"{band} is in {layers[band].where} as well"
                )
            layers[band] = file.files.layer(file.path, grid, number)
            grids[band] = grid
    if not layers:
        polarised = any(_POLARISATION.search(file.path) for file in group)
        # HH and HV alone, or a picture of the product.
        return BadCellError(where, "neither VV nor VH is in it") if polarised else None
    grid = next(iter(grids.values()))
    product = _POLARISATION.sub("", first.product).strip("_-.").replace("__", "_")
    time = _TIME.search(first.product)
    return Scene(
        modality="s1",
        product_id=product,
        source=where,
        time="{}-{}-{}T{}:{}:{}+00:00".format(*time.groups()) if time else "",
        footprint=_footprint(grid),
        layers=layers,
        grid=grid,
        unit="amplitude" if _is_amplitude(first) else "",
    )


def _is_amplitude(file: RadarFile) -> bool:
    hyp3 = _HYP3.search(file.product)
    return hyp3.group(1) == "a" if hyp3 else bool(_AMPLITUDE.search(f"{file.product}/{file.path}"))


def _footprint(grid: Grid) -> tuple[tuple[float, float], ...]:
    a, _, c, _, e, f = grid.transform
    rows, columns = grid.shape
    x = np.array([c, c + a * columns, c + a * columns, c])
    y = np.array([f, f, f + e * rows, f + e * rows])
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(x, y)
    return tuple((float(one), float(other)) for one, other in zip(longitude, latitude, strict=True))

"""SSL4EO-S12: a folder for each product level, in it locations with several dates.

    ARCHIVE/s1/0000200/S1A_IW_GRDH_..._D457/VV.tif, VH.tif          dB
    ARCHIVE/s2c/0000200/20200604T054639_..._T43RCP/B1.tif .. B12.tif   Level-1C
    ARCHIVE/s2a/0000200/20200604T054639_..._T43RCP/B1.tif .. B12.tif   Level-2A
    .../metadata.json                                               what Earth Engine knows

Each date of the anchor (Level-2A, else Level-1C, else Sentinel-1) is a cell of its own; of the
other products the date nearest in time joins it.

Patches are 264 px at 10 m (132 at 20 m, 44 at 60 m), cut around one centre in UTM and stamped
with their bounds in EPSG:4326. The stamps of one location differ by up to five pixels between
bands and sensors, more than the pixels themselves do, so patches are laid on each other pixel
by pixel: 10 m is nominal, the cell carries the stamp of its first 10 m band, and a patch whose
stamp lies elsewhere is a fault.
"""

import re
from functools import cached_property
from math import cos, hypot, inf, isfinite, radians
from typing import Any

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Listed, Product
from terrafm.data.land.selection import ANCHORS
from terrafm.data.sources.folders import archive_names, for_all, read_json, usual_shape
from terrafm.data.sources.pairing import nearest
from terrafm.data.sources.raster import Patch, read_patch
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join

FOLDERS = {"s2_l2a": "s2a", "s2_l1c": "s2c", "s1": "s1"}
_SHAPE = (264, 264)
_GSD = 10
_CIRRUS = "B10"
_TIME = re.compile(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})")
_METRES_PER_DEGREE = 111_320.0
# Bounds of a rotated square are larger than the square.
_PIXEL_TOLERANCE = 0.25
_CORNER_TOLERANCE_M = 100.0


class Ssl4eoS12:
    """The `ssl4eo-s12` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = modalities

    def __getstate__(self) -> dict[str, Any]:
        """A reading task does not get the listing."""
        return {name: value for name, value in self.__dict__.items() if name != "_listing"}

    def layout(self) -> Layout:
        """264 x 264 px at 10 m (or what most of a few cells have instead).

        Raises:
            UsageError: no such archive, or no folder of a product level in it.
        """
        return Layout(
            gsd=_GSD,
            shape=usual_shape(self, self._listing, _SHAPE),
            band_gsd={m: MODALITIES[m].gsd for m in self._modalities},
        )

    def cells(self) -> list[CellRef]:
        """The anchor's dates of all locations, by location and time.

        Raises:
            UsageError: no such archive, or nothing in its folders.
        """
        return self._listing

    @cached_property
    def _listing(self) -> list[CellRef]:
        folders = {
            modality: join(self._uri, FOLDERS[modality])
            for modality in ANCHORS
            if modality in self._modalities and exists(join(self._uri, FOLDERS[modality]))
        }
        if not folders:
            raise UsageError(
                f"{self._uri} holds no SSL4EO-S12 archive: expected folders "
                f"{', '.join(FOLDERS[m] for m in self._modalities)} with locations in them"
            )
        names = for_all(archive_names, folders.values())
        locations = sorted(set().union(*names))
        present = {m: set(found) for m, found in zip(folders, names, strict=True)}

        def refs_of(location: str) -> list[CellRef]:
            scenes = {
                modality: archive_names(join(folder, location))
                for modality, folder in folders.items()
                if location in present[modality]
            }
            return _pair(location, {m: found for m, found in scenes.items() if found}, folders)

        refs = [ref for some in for_all(refs_of, locations) for ref in some]
        if not refs:
            raise UsageError(f"no scene in the folders of {self._uri}")
        return refs

    def read(self, ref: CellRef) -> Cell:
        """Reads the bands of one cell.

        Raises:
            BadCellError: no product of the cell can be read.
        """
        products: dict[str, Product] = {}
        stamps: dict[str, Patch] = {}
        faults: dict[str, BadCellError] = {}
        for modality in ref.modalities:
            try:
                products[modality], stamps[modality] = _read(modality, ref.location[modality])
                first = stamps[next(iter(stamps))]
                _check_stamp(stamps[modality], first, _GSD, ref.location[modality])
            except BadCellError as fault:
                faults[modality] = fault
                products.pop(modality, None)
        if not products:
            raise next(iter(faults.values()))
        stamp = stamps[next(iter(products))]
        return Cell(
            cell_id=ref.cell_id,
            crs=stamp.crs,
            transform=stamp.transform,
            shape=(stamp.pixels.shape[0], stamp.pixels.shape[1]),
            gsd=_GSD,
            products=products,
            faults=faults,
            place=_location(ref),
        )


def _pair(location: str, scenes: dict[str, list[str]], folders: dict[str, str]) -> list[CellRef]:
    """One cell for each scene of the anchor, with the nearest scene of every other product."""
    anchor = next((m for m in ANCHORS if m in scenes), None)
    refs = []
    for scene in scenes[anchor] if anchor else []:
        chosen = {
            modality: scene if modality == anchor else nearest(_time(scene), _times(names))
            for modality, names in scenes.items()
        }
        found = {modality: name for modality, name in chosen.items() if name is not None}
        refs.append(
            CellRef(
                cell_id=f"{location}_{scene}",
                location={m: join(folders[m], location, name) for m, name in found.items()},
                modalities=tuple(found),
                listed={m: Listed(_time(name)) for m, name in found.items()},
            )
        )
    return refs


def _location(ref: CellRef) -> str:
    """The location's folder, in which the scene's lies."""
    scene: str = next(iter(ref.location.values()))
    return scene.rsplit("/", 2)[1]


def _times(names: list[str]) -> dict[str, str]:
    return {name: _time(name) for name in names}


def _time(scene: str) -> str:
    match = _TIME.search(scene)
    return "{}-{}-{}T{}:{}:{}+00:00".format(*match.groups()) if match else ""


def _read(modality: str, folder: str) -> tuple[Product, Patch]:
    spec = MODALITIES[modality]
    metadata = read_json(join(folder, "metadata.json"))
    product_id = str(metadata.get("PRODUCT_ID", metadata.get("system:index", "")))
    files = {band: f"{_file_name(band)}.tif" for band in spec.bands}
    patches = {band: read_patch(join(folder, name)) for band, name in files.items()}
    finest = patches[spec.bands[spec.gsd.index(_GSD)]]
    for (band, patch), gsd in zip(patches.items(), spec.gsd, strict=True):
        _check_stamp(patch, finest, gsd, join(folder, files[band]))
    cirrus, cirrus_file = None, join(folder, f"{_CIRRUS}.tif")
    # The cirrus band tells the offset, and whether a processing baseline in the name does.
    if modality == "s2_l1c" and ("_N" not in product_id or exists(cirrus_file)):
        cirrus = read_patch(cirrus_file).measured(modality)
    where = join(folder, "metadata.json")
    product = Product(
        modality=modality,
        bands={band: patch.measured(modality) for band, patch in patches.items()},
        gsd=dict(zip(spec.bands, spec.gsd, strict=True)),
        product_id=product_id,
        time=_time(folder.rpartition("/")[2]),
        cloud_cover=_cloud_cover(metadata.get("CLOUDY_PIXEL_PERCENTAGE"), where),
        cirrus=cirrus,
        source=folder,
        claim=finest.claim(),
    )
    return product, finest


def _cloud_cover(value: Any, where: str) -> float | None:
    try:
        cover = None if value is None else float(value)
    except (TypeError, ValueError):
        cover = inf
    if cover is not None and not isfinite(cover):
        raise BadCellError(where, f"CLOUDY_PIXEL_PERCENTAGE is {shortened(value)}, not a number")
    return cover


def _file_name(band: str) -> str:
    return band.replace("B0", "B")


def _check_stamp(patch: Patch, finest: Patch, gsd: int, where: str) -> None:
    """Refuses a patch of another place, another size, or with pixels far from its nominal GSD."""
    rows, columns = patch.pixels.shape
    a, b, c, d, e, f = patch.transform
    if patch.crs != "EPSG:4326" or b or d or a <= 0 or e >= 0:
        raise BadCellError(where, f"not a north-up patch in EPSG:4326, but {patch.crs}")
    expected = tuple(side * _GSD for side in finest.pixels.shape)
    if (rows * gsd, columns * gsd) != expected:
        raise BadCellError(
            where, f"{rows} x {columns} px do not cover {expected[0]} x {expected[1]} m at {gsd} m"
        )
    east = _METRES_PER_DEGREE * cos(radians(f))
    for size in (-e * _METRES_PER_DEGREE, a * east):
        if abs(size / gsd - 1) > _PIXEL_TOLERANCE:
            raise BadCellError(where, f"pixels of {size:.1f} m, not of {gsd} m")
    apart = hypot((c - finest.transform[2]) * east, (f - finest.transform[5]) * _METRES_PER_DEGREE)
    if apart > _CORNER_TOLERANCE_M:
        raise BadCellError(where, f"lies {apart:.0f} m from the cell's other patches")

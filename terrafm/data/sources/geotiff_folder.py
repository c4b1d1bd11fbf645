"""A folder for each sensor, one GeoTIFF for each place.

    ARCHIVE/S1RTC/PLACE.tif      2 bands: VV, VH; linear power or dB
    ARCHIVE/S2L1C/PLACE.tif      12 bands, or 13 with B10; digital numbers or reflectance
    ARCHIVE/S2L2A/PLACE.tif      12 bands
    ARCHIVE/NAME/PLACE.tif       a sensor of another package, as its entry says
    ARCHIVE/LULC/PLACE.tif       1 band of class codes, any legend; the folder may be absent

All bands of a place lie on one grid, projected in metres, with pixels of one size in the whole
archive. Only a sensor of another package may have larger pixels, those of its entry: a whole
multiple of the others' over the same ground. Bands are taken by their names, and only without any
by the order of `terrafm.data.rasters.bands`.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Product
from terrafm.data.land.selection import NO_CLASS
from terrafm.data.rasters.bands import L1C_ORDER, match_file
from terrafm.data.rasters.geotiff import band_levels
from terrafm.data.sources.folders import (
    LAND_COVER,
    WORLDCOVER,
    archive_names,
    find_folders,
    spread_out,
)
from terrafm.data.sources.offsets import named_product
from terrafm.data.sources.raster import Grid, Raster, read_geotiff, read_grid, reference_grid
from terrafm.errors import PixelError, TerraFMError, UsageError
from terrafm.modalities import MODALITIES, SENTINEL
from terrafm.storage import exists, join

_SUFFIXES = (".tif", ".tiff")
# So many places tell the archive's grid: one odd one among them is outvoted.
_PROBED = 3


class GeotiffFolder:
    """The `geotiff` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = modalities

    def layout(self) -> Layout:
        """The grid that most of a few places have, taken from all over the archive.

        Raises:
            UsageError: no such folder, no folder of a sensor in it, or the folders differ in the
                size of their pixels.
            TerraFMError: none of the files can be used.
        """
        folders = self._folders()
        looked_at, faults = self._look()
        if not looked_at:
            raise TerraFMError(f"no file under {self._uri} can be used; the first: {faults[0]}")
        self._check_sizes(folders, looked_at)
        usual = [grids[_one_grid(grids)[0]] for grids in looked_at]
        gsd = _most_common([grid.gsd for grid in usual])
        shape = Counter(g.shape for g in usual if g.gsd == gsd).most_common(1)[0][0]
        return Layout(
            gsd,
            shape,
            {m: (_own_gsd(m, looked_at, gsd),) * MODALITIES[m].channels for m in self._modalities},
            land_cover=LAND_COVER in folders,
            worldcover=find_folders(self._uri).get(WORLDCOVER),
        )

    def cells(self) -> list[CellRef]:
        """The places of all folders together, by name.

        Raises:
            UsageError: no such folder, no folder of a sensor in it, or no GeoTIFF in those.
        """
        places: dict[str, dict[str, list[str]]] = {}
        for content, folder in self._folders().items():
            for name in archive_names(folder):
                stem, dot, suffix = name.rpartition(".")
                if dot + suffix.lower() in _SUFFIXES:
                    places.setdefault(stem, {}).setdefault(content, []).append(join(folder, name))
        refs = [_ref(place, files, self._modalities) for place, files in sorted(places.items())]
        refs = [ref for ref in refs if ref.modalities or ref.faults]
        if not refs:
            raise UsageError(f"no GeoTIFF in the sensor folders under {self._uri}")
        return refs

    def read(self, ref: CellRef) -> Cell:
        """Opens the files of a place.

        Raises:
            BadCellError: no modality, or not the land cover, can be read.
        """
        rasters: dict[str, Raster] = {}
        faults: dict[str, BadCellError] = {}
        products: dict[str, Product] = {}
        for modality in sorted(ref.modalities, reverse=True):
            try:
                rasters[modality] = read_geotiff(ref.location[modality])
                products[modality] = _product(modality, rasters[modality], ref.location[modality])
            except BadCellError as fault:
                faults[modality] = fault
        if not products:
            raise next(iter(faults.values()))
        land_cover = None
        if LAND_COVER in ref.location:
            rasters[LAND_COVER] = read_geotiff(ref.location[LAND_COVER])
            land_cover = _codes(rasters[LAND_COVER], ref.location[LAND_COVER])
        reference, differences = _one_grid(
            {name: r.grid for name, r in rasters.items() if name in products or name == LAND_COVER}
        )
        for name, why in differences.items():
            faults[name] = BadCellError(ref.location[name], why)
            if name == LAND_COVER:
                raise faults[name]
            del products[name]
        if not products:
            raise next(iter(faults.values()))
        grid = rasters[reference].grid
        return Cell(
            cell_id=ref.cell_id,
            crs=grid.crs,
            transform=grid.transform,
            shape=grid.shape,
            gsd=grid.gsd,
            products=products,
            faults=faults,
            land_cover=land_cover,
        )

    def _folders(self) -> dict[str, str]:
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        folders = find_folders(self._uri)
        wanted = {c: f for c, f in folders.items() if c in self._modalities or c == LAND_COVER}
        if not set(wanted) - {LAND_COVER}:
            raise UsageError(
                f"{self._uri} has no folder of {', '.join(self._modalities)}: "
                "a geotiff archive holds S1RTC/, S2L1C/, S2L2A/ and, if there is one, LULC/"
            )
        return wanted

    def _look(self) -> tuple[list[dict[str, Grid]], list[str]]:
        """The grids of the files of a few places, and what is wrong with others."""
        refs = self.cells()
        found, faults = [], [str(fault) for ref in refs for _, fault in ref.faults]
        for ref in spread_out(refs):
            grids = {}
            for content, uri in ref.location.items():
                try:
                    grids[content] = read_grid(uri)
                except BadCellError as fault:
                    faults.append(str(fault))
            if any(content in MODALITIES for content in grids):
                found.append(grids)
            if len(found) == _PROBED:
                break
        return found, faults

    def _check_sizes(self, folders: dict[str, str], places: list[dict[str, Grid]]) -> None:
        """Refuses an archive of which one folder never has the pixels of the others."""
        sizes: dict[str, Counter[int]] = {}
        for grids in places:
            for content, grid in grids.items():
                sizes.setdefault(content, Counter())[grid.gsd] += 1
        ours = {c: own for c, own in sizes.items() if not all(_is_own(c, gsd) for gsd in own)}
        usual = _most_common([gsd for own in (ours or sizes).values() for gsd in own.elements()])
        for content in set(sizes) - set(ours):
            if not max(sizes[content]) % usual:
                del sizes[content]
        # What is odd in one of several places is that place's fault.
        odd = {c: next(iter(own)) for c, own in sizes.items() if own[usual] == 0 and len(own) == 1}
        odd = {c: gsd for c, gsd in odd.items() if sizes[c][gsd] == len(places)}
        if not odd:
            return
        parts = [f"{folders[c].rpartition('/')[2]} has {gsd} m" for c, gsd in sorted(odd.items())]
        raise UsageError(
            f"{self._uri}: {', '.join(parts)} and the others {usual} m, but the pixels of all "
            "folders must have one size: resample (gdalwarp -tr), or leave a sensor out with "
            "--modalities"
        )


def _ref(place: str, files: dict[str, list[str]], modalities: tuple[str, ...]) -> CellRef:
    """The place; of files that differ in their suffix alone none can be preferred."""
    single = {content: uris[0] for content, uris in files.items() if len(uris) == 1}
    faults = []
    for content, (first, *others) in files.items():
        if others:
            names = ", ".join(uri.rpartition("/")[2] for uri in others)
            why = f"{names} beside it differs in the suffix alone: rename or remove one"
            faults.append((content, BadCellError(first, why)))
    present = tuple(m for m in modalities if m in single)
    return CellRef(place, single, present, faults=tuple(faults))


def _one_grid(grids: dict[str, Grid]) -> tuple[str, dict[str, str]]:
    """As `reference_grid`, but pixels of another size do not match, whatever they cover.

    Those of a sensor whose entry says so do, where they are a whole multiple of the others'.
    """
    ours = [grid.gsd for name, grid in grids.items() if not _is_own(name, grid.gsd)]
    usual = _most_common(ours) if ours else min(grid.gsd for grid in grids.values())
    alike = {name: grid for name, grid in grids.items() if grid.gsd == usual}
    reference, differences = reference_grid(alike)
    for name, grid in grids.items():
        if name in alike:
            continue
        if _is_own(name, grid.gsd) and grid.gsd % usual == 0:
            if why := grid.difference(grids[reference]):
                differences[name] = f"grid does not match that of {reference}: {why}"
            continue
        differences[name] = (
            f"pixels do not match those of {reference}: {grid}, not {grids[reference]}"
        )
    return reference, differences


def _is_own(content: str, gsd: int) -> bool:
    """Whether a folder's pixels have the size that the entry of another package's sensor states."""
    return content not in (*SENTINEL, LAND_COVER) and set(MODALITIES[content].gsd) == {gsd}


def _own_gsd(modality: str, places: list[dict[str, Grid]], gsd: int) -> int:
    """Of a sensor's pixels in the places looked at; that of the archive where it is in none."""
    found = [grids[modality].gsd for grids in places if modality in grids]
    own = [size for size in found if _is_own(modality, size) and size % gsd == 0]
    return own[0] if own else gsd


def _most_common(sizes: list[int]) -> int:
    """Of several equally common ones the finest: a coarser one is the odd one."""
    counts = Counter(sizes)
    return min(counts, key=lambda size: (-counts[size], size))


def _product(modality: str, raster: Raster, where: str) -> Product:
    expected = MODALITIES[modality].bands
    measured = raster.measured(modality)
    try:
        match = match_file(
            raster.stored.header.names,
            modality,
            where,
            lambda: band_levels(measured),
            otherwise=L1C_ORDER,
        )
    except PixelError as fault:
        raise BadCellError(fault.where, fault.why) from None
    return Product(
        modality=modality,
        bands={expected[c]: measured[at] for c, at in zip(match.channels, match.take, strict=True)},
        gsd={expected[channel]: raster.grid.gsd for channel in match.channels},
        product_id=named_product(raster.tags, where.rpartition("/")[2].rpartition(".")[0]),
        time=raster.tags.get("datetime", ""),
        cirrus=None if match.cirrus is None else measured[match.cirrus],
        source=where,
        claim=raster.claim(),
    )


def _codes(raster: Raster, where: str) -> NDArray[np.integer[Any]]:
    if len(raster.pixels) != 1 or not np.issubdtype(raster.pixels.dtype, np.integer):
        raise BadCellError(where, "land cover must be one band of integer codes")
    codes = raster.pixels[0].astype(np.int64)
    (nodata,) = raster.stored.header.nodata
    missing = raster.stored.missing[0]
    return np.where(missing if nodata is None else missing | (codes == nodata), NO_CLASS, codes)

"""A folder for each sensor, one GeoTIFF for each place.

    ARCHIVE/S1RTC/PLACE.tif      2 bands: VV, VH; linear power or dB
    ARCHIVE/S2L1C/PLACE.tif      12 bands, or 13 with B10; digital numbers or reflectance
    ARCHIVE/S2L2A/PLACE.tif      12 bands
    ARCHIVE/LULC/PLACE.tif       1 band of class codes, any legend; the folder may be absent

All bands of a place lie on one grid, projected in metres. Bands are taken by their names, and
only without any by the order of `terrafm.data.rasters.bands`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.rasters.bands import L1C_ORDER, match_file
from terrafm.data.rasters.geotiff import band_levels
from terrafm.data.rasters.offsets import named_product
from terrafm.data.sources.base import BadCellError, Cell, CellRef, Layout, Product
from terrafm.data.sources.folders import LAND_COVER, WORLDCOVER, find_folders
from terrafm.data.sources.raster import Raster, read_geotiff, read_grid, reference_grid
from terrafm.data.tiles.landcover import NO_CLASS
from terrafm.errors import PixelError, TerraFMError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join, list_names

_SUFFIXES = (".tif", ".tiff")


class GeotiffFolder:
    """The `geotiff` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = modalities

    def layout(self) -> Layout:
        """The grid of the first place that can be opened.

        Raises:
            UsageError: no such folder, or no folder of a sensor in it.
            TerraFMError: none of the files can be used.
        """
        folders = self._folders()
        faults = []
        for ref in self.cells():
            for modality in ref.modalities:
                try:
                    grid = read_grid(ref.location[modality])
                except BadCellError as fault:
                    faults.append(str(fault))
                    continue
                band_gsd = {m: (grid.gsd,) * MODALITIES[m].channels for m in self._modalities}
                return Layout(
                    grid.gsd,
                    grid.shape,
                    band_gsd,
                    land_cover=LAND_COVER in folders,
                    worldcover=find_folders(self._uri).get(WORLDCOVER),
                )
        raise TerraFMError(f"no file under {self._uri} can be used; the first: {faults[0]}")

    def cells(self) -> list[CellRef]:
        """The places of all folders together, by name.

        Raises:
            UsageError: no such folder, no folder of a sensor in it, or no GeoTIFF in those.
        """
        places: dict[str, dict[str, str]] = {}
        for content, folder in self._folders().items():
            for name in list_names(folder):
                stem, dot, suffix = name.rpartition(".")
                if dot + suffix.lower() in _SUFFIXES and not name.startswith("."):
                    places.setdefault(stem, {})[content] = join(folder, name)
        refs = [
            CellRef(place, files, tuple(m for m in self._modalities if m in files))
            for place, files in sorted(places.items())
        ]
        refs = [ref for ref in refs if ref.modalities]
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
        reference, differences = reference_grid(
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
    if match.missing:
        raise BadCellError(where, f"it has no band {', '.join(match.missing)}")
    return Product(
        modality=modality,
        bands=dict(zip(expected, measured[list(match.take)], strict=True)),
        gsd=dict.fromkeys(expected, raster.grid.gsd),
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

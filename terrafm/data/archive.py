"""What every archive yields: grid cells with the raw pixels of their products.

A source is a small class with three methods: `layout()` states the grid, `cells()` lists the
archive cheaply and in a fixed order, `read()` opens one cell. Cutting into tiles, radiometry,
land cover and shards are the same for all sources and live in `terrafm.data.ingest.job`.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from terrafm.modalities import MODALITIES


class BadCellError(Exception):
    """A cell, or one modality of it, that cannot be used; it goes to the quarantine list.

    Attributes:
        where: URI of the file (and row or band) at fault.
        why: one line, what is wrong with it.
    """

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.why)


@dataclass(frozen=True)
class Listed:
    """What an archive says of a product before it is opened.

    Attributes:
        time: acquisition time, ISO 8601, or "" where the listing does not say.
        cloud_cover: 0..100, or None where the listing does not say.
    """

    time: str = ""
    cloud_cover: float | None = None


@dataclass(frozen=True)
class CellRef:
    """A cell of the archive, not yet opened.

    Attributes:
        cell_id: unique and stable name of the cell in its archive.
        location: what the source needs to read it; picklable.
        modalities: those the archive lists for the cell, readable or not; `Source.read` reads
            these and no others.
        listed: modality -> time and clouds where the listing tells them, so that products over a
            limit need not be read.
        faults: (modality, fault) for each product, or land-cover raster, that the listing makes
            useless; it is not among `modalities`, unless another one takes its place.
        centre: longitude and latitude in degrees, where the listing tells them.
    """

    cell_id: str
    location: Any
    modalities: tuple[str, ...]
    listed: dict[str, Listed] = field(default_factory=dict)
    faults: tuple[tuple[str, BadCellError], ...] = ()
    centre: tuple[float, float] | None = None


@dataclass(frozen=True)
class Layout:
    """What is known of an archive before its pixels are read.

    Attributes:
        gsd: metres of the finest grid; a cell on another grid is a fault.
        shape: rows and columns of a usual cell, on the finest grid.
        band_gsd: modality -> ground sampling distance of each band in model order.
        land_cover: whether every cell brings a land-cover raster aligned with its grid.
        worldcover: URI of ESA WorldCover tiles that the archive brings, or None.
        legend_codes: raw code of the land-cover rasters -> code of the dataset, unless the user
            gives a legend; empty where they have the dataset's own.
        legend_names: code of the dataset -> name, where WorldCover has none or another.
        notes: decisions and counts of the listing for the report, ready for JSON.
    """

    gsd: int
    shape: tuple[int, int]
    band_gsd: dict[str, tuple[int, ...]]
    land_cover: bool = False
    worldcover: str | None = None
    legend_codes: dict[int, int] = field(default_factory=dict)
    legend_names: dict[int, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Product:
    """One modality over one cell, pixels as the archive holds them.

    Attributes:
        modality: key of `terrafm.modalities.MODALITIES`.
        bands: band name -> (H_g, W_g) array on the band's own grid: digital numbers or, as floats,
            reflectance (S2); linear power or dB (S1). All grids share the cell's footprint. At
            least one band; a product that lacks others is taken where
            `ingest.allow_missing_bands` allows it.
        gsd: band name -> ground sampling distance, metres.
        nodata: value that marks missing pixels besides NaN and known fill values, or None.
        product_id: name of the product; S2's holds the processing baseline.
        time: acquisition time, ISO 8601, or "" where the archive does not say.
        cloud_cover: 0..100, or None where the archive does not say.
        cirrus: B10 of Level-1C where the archive has it: evidence for the radiometric offset.
        source: the file or row it was read from, for messages.
        claim: DN that are still to be subtracted and which of the file's tags says so, or None.
        origin: where it comes from, plain values for the index, or None where its name tells it.
    """

    modality: str
    bands: dict[str, NDArray[Any]]
    gsd: dict[str, int]
    nodata: float | None = None
    product_id: str = ""
    time: str = ""
    cloud_cover: float | None = None
    cirrus: NDArray[Any] | None = None
    source: str = ""
    claim: tuple[int, str] | None = None
    origin: dict[str, Any] | None = None

    @property
    def missing_bands(self) -> tuple[str, ...]:
        """Bands of the modality that the product lacks, in model order."""
        return tuple(b for b in MODALITIES[self.modality].bands if b not in self.bands)


@dataclass
class Cell:
    """One grid cell with its products.

    Attributes:
        cell_id: as in its `CellRef`.
        crs: coordinate system as an authority string, such as "EPSG:32633".
        transform: affine coefficients (a, b, c, d, e, f) of the finest grid.
        shape: rows and columns of the finest grid.
        gsd: metres of the finest grid.
        products: modality name -> product.
        faults: modality name -> what kept it from being read.
        land_cover: (H, W) codes aligned with the finest grid, or None: then WorldCover is read.
        place: name of the ground, equal in all cells that show it at other dates, on the same
            grid; "" where the archive has it once.
    """

    cell_id: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    gsd: int
    products: dict[str, Product]
    faults: dict[str, BadCellError] = field(default_factory=dict)
    land_cover: NDArray[np.integer[Any]] | None = None
    place: str = ""


class Source(Protocol):
    """An archive layout. Pickled once for every reading task."""

    def layout(self) -> Layout:
        """The archive's grid and what it brings.

        Raises:
            UsageError: the archive does not exist, is empty, or has not this layout.
        """
        ...

    def cells(self) -> list[CellRef]:
        """All cells in a fixed order.

        Raises:
            UsageError: the archive does not exist or has not this layout.
        """
        ...

    def read(self, ref: CellRef) -> Cell:
        """Opens one cell; modalities that cannot be read are listed in `Cell.faults`.

        Raises:
            BadCellError: nothing of the cell can be used.
        """
        ...

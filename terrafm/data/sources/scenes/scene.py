"""A scene: single-band rasters of one acquisition, at their own resolutions."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.opening import Driver
from terrafm.data.sources.raster import Grid
from terrafm.storage.zip_members import Member


@dataclass(frozen=True)
class Layer:
    """A raster of a scene, not opened.

    Attributes:
        uri: the file, or the zip that it lies in.
        driver: its format.
        member: where it lies in the zip.
        array: of Zarr its path; `uri` is the hierarchy.
        band: number of the band in the file, from 1.
        grid: where its pixels lie; None: the file says it.
    """

    uri: str
    driver: Driver = Driver.GEOTIFF
    member: Member | None = None
    band: int = 1
    grid: Grid | None = None
    array: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        if self.array:
            return f"{self.uri.rstrip('/')}/{self.array}"
        return self.uri if self.member is None else f"{self.uri}/{self.member.name}"


@dataclass(frozen=True, repr=False)
class Scene:
    """One acquisition by one sensor at one level of processing.

    Attributes:
        modality: key of `terrafm.modalities.MODALITIES`.
        product_id: name of the product.
        source: the folder or file that it is read from.
        time: ISO 8601, or "".
        footprint: corners of its ground, (longitude, latitude) in degrees.
        layers: band name -> raster; B10 of Level-1C as well.
        cloud_cover: 0..100 of the whole product, or None.
        tile: MGRS tile such as "33UUP", or "".
        grid: the finest of its own grids where it is known before a raster is opened.
        claim: see `Product.claim`.
        quantification: reflectance = (DN + add) / quantification.
        add: see there; by band where a product states one that archives do not have.
        mask: raster of classes, and the kind of its classes: "scl", "classi" or "flags".
        unit: of radar where its name tells: "linear", "dB" or "amplitude"; else "".
        age: the larger, the newer the processing.
        origin: see `Product.origin`.
    """

    modality: str
    product_id: str
    source: str
    time: str
    footprint: tuple[tuple[float, float], ...]
    layers: dict[str, Layer]
    cloud_cover: float | None = None
    tile: str = ""
    grid: Grid | None = None
    claim: tuple[int, str] | None = None
    quantification: float = 10_000.0
    add: dict[str, float] = field(default_factory=dict)
    mask: tuple[Layer, str] | None = None
    unit: str = ""
    age: tuple[int, str] = (0, "")
    origin: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """What tells it from others: this is in the fingerprint of an archive."""
        bands = ",".join(sorted(self.layers))
        return f"{self.modality} {self.product_id} {self.source} {bands}"

    @property
    def moment(self) -> datetime | None:
        """Its time."""
        return parse_time(self.time)

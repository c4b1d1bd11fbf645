"""What a sensor product is: bands in model order, ground sampling distance, unit, storage.

Apart from `terrafm.modalities`, which imports the packages that bring sensors of their own: those
import this module, and no circle closes.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UNIT = re.compile(r"[\w ./%-]{1,40}")
_DTYPES = ("uint16", "int16")
_PICTURE_BANDS = 3


@dataclass(frozen=True)
class Modality:
    """One sensor product.

    Attributes:
        name: such as "s1" or "landsat"; part of file and column names.
        bands: band names in the order of the model's input channels.
        gsd: native ground sampling distance of each band, metres.
        dtype: storage type of a pixel in the shards, "uint16" or "int16".
        nodata: storage value of a pixel without a measurement.
        scale: physical value = storage value * scale.
        unit: physical unit, such as "dB", "reflectance" or "m".
        title: what people read; the name by default.
        radiometry: how raw pixels become physical values. "sentinel-1" tells power from dB by the
            values, "sentinel-2" finds out whether an offset is left in them, "stated" takes
            what the file's scale tags say, else `raw_scale` and `raw_offset`.
        raw_scale: of integers without a scale tag: physical = raw * raw_scale + raw_offset. Floats
            without a tag are physical values already.
        raw_offset: as above.
        raw_nodata: raw integer of a pixel without a measurement, of files that state none.
        folders: names of its folder in an archive of GeoTIFFs, besides its own name.
        picture: three bands as red, green and blue, or one in grey; by default the first.

    Raises:
        ValueError: an attribute is impossible; says which.
    """

    name: str
    bands: tuple[str, ...]
    gsd: tuple[int, ...]
    dtype: str
    nodata: int
    scale: float
    unit: str
    title: str = ""
    radiometry: Literal["sentinel-1", "sentinel-2", "stated"] = "stated"
    raw_scale: float = 1.0
    raw_offset: float = 0.0
    raw_nodata: int | None = None
    folders: tuple[str, ...] = ()
    picture: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "gsd", tuple(self.gsd))
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "picture", tuple(self.picture) or self.bands[:1])
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not of lower-case letters, digits and _")
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"{self.name}: bands must be names, none of them twice")
        if len(self.gsd) != len(self.bands) or not all(
            isinstance(metres, int) and metres >= 1 for metres in self.gsd
        ):
            raise ValueError(f"{self.name}: gsd must be whole metres, one for each band")
        # Crops travel as 16-bit words, whatever they mean.
        if self.dtype not in _DTYPES:
            raise ValueError(f"{self.name}: dtype must be {' or '.join(_DTYPES)}")
        limits = np.iinfo(self.dtype)
        if not limits.min <= self.nodata <= limits.max:
            raise ValueError(f"{self.name}: nodata {self.nodata} is no {self.dtype}")
        if not self.scale > 0 or not self.raw_scale:
            raise ValueError(f"{self.name}: scale must be above 0, and raw_scale not 0")
        if not _UNIT.fullmatch(self.unit):
            raise ValueError(f"{self.name}: unit {self.unit!r} is not a short word")
        if len(self.picture) not in (1, _PICTURE_BANDS) or not set(self.picture) <= set(self.bands):
            raise ValueError(f"{self.name}: picture must be one or three of its bands")

    @property
    def channels(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def storable(self) -> tuple[float, float]:
        """Smallest and largest physical value that the storage type holds."""
        limits = np.iinfo(self.dtype)
        least = limits.min + (self.nodata == limits.min)
        most = limits.max - (self.nodata == limits.max)
        return float(least * self.scale), float(most * self.scale)

    def to_physical(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """Storage integers to float32 in `unit`; nodata becomes NaN."""
        values = stored.astype(np.float32) * np.float32(self.scale)
        values[stored == self.nodata] = np.nan
        return values

"""The three sensors: bands in model order, ground sampling distance, units, storage.

The single source of truth for band lists. Models read the channel counts here, data the GSDs
and units, exports the data contract. Source of the order: the released 12-channel weights drop
the cirrus band B10 from Level-1C.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Modality:
    """One sensor product.

    Attributes:
        name: "s1", "s2_l1c" or "s2_l2a".
        bands: band names in the order of the model's input channels.
        gsd: native ground sampling distance of each band, metres.
        dtype: storage type of a pixel in the shards.
        nodata: storage value of a pixel without a measurement.
        scale: physical value = storage value * scale.
        unit: physical unit, "dB" or "reflectance".
    """

    name: str
    bands: tuple[str, ...]
    gsd: tuple[int, ...]
    dtype: str
    nodata: int
    scale: float
    unit: str

    @property
    def channels(self) -> int:
        """Number of bands."""
        return len(self.bands)

    def to_physical(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """Storage integers to float32 in `unit`; nodata becomes NaN."""
        values = stored.astype(np.float32) * np.float32(self.scale)
        values[stored == self.nodata] = np.nan
        return values


_S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2_GSD = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20)

MODALITIES: dict[str, Modality] = {
    "s1": Modality("s1", ("VV", "VH"), (10, 10), "int16", -32768, 0.01, "dB"),
    "s2_l1c": Modality("s2_l1c", _S2_BANDS, _S2_GSD, "uint16", 0, 1e-4, "reflectance"),
    "s2_l2a": Modality("s2_l2a", _S2_BANDS, _S2_GSD, "uint16", 0, 1e-4, "reflectance"),
}

SENSOR_TITLES = {"s2_l2a": "Sentinel-2 L2A", "s2_l1c": "Sentinel-2 L1C", "s1": "Sentinel-1"}
"""What people read, and what they look at first comes first."""

FIRST_CHOICE = tuple(SENSOR_TITLES)
"""Where one modality has to do, the first of these that is there: published scores are of L2A."""

"""What Sentinel-1 sees: backscatter in VV and VH, linear power, terrain-corrected.

Mean backscatter per material in dB, texture, slopes towards the radar, the instrument's noise
floor, and multiplicative gamma speckle of a multi-looked ground-range product.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from terrafm.data.synthetic.landscape import MATERIALS, Landscape
from terrafm.data.synthetic.noise import Field, fractal, gradient

LOOKS = 4.4  # equivalent number of looks of interferometric-wide ground-range products
NOISE_FLOOR = 10 ** (-26 / 10)

# Mean VV and VH in dB and standard deviation of texture in dB.
_BACKSCATTER: dict[str, tuple[float, float, float]] = {
    "broadleaf": (-8.6, -14.0, 0.9),
    "conifer": (-9.6, -15.2, 1.1),
    "shrub": (-11.8, -17.8, 1.2),
    "grass": (-13.4, -20.6, 0.6),
    "cereal": (-12.2, -18.6, 0.9),
    "rapeseed": (-9.8, -15.4, 0.9),
    "stubble": (-13.6, -21.4, 1.0),
    "soil": (-12.4, -22.0, 1.4),
    "roof": (-4.2, -11.8, 3.2),
    "tile": (-3.6, -11.2, 3.2),
    "asphalt": (-10.5, -18.0, 2.5),
    "bright_roof": (-1.5, -10.5, 3.5),
    "sand": (-18.5, -27.0, 1.1),
    "rock": (-11.6, -19.8, 1.6),
    "snow": (-13.2, -21.6, 0.7),
    "ice": (-10.8, -17.6, 1.5),
    "water": (-18.6, -26.6, 0.4),
    "marsh": (-10.2, -18.4, 1.9),
    "mangrove": (-8.8, -14.6, 0.7),
    "moss": (-13.8, -21.0, 1.4),
}
_VV, _VH, _TEXTURE = (
    np.array([_BACKSCATTER[m][i] for m in MATERIALS], np.float32) for i in range(3)
)
_WATER = MATERIALS.index("water")


@dataclass(frozen=True)
class Pass:
    """Circumstances of one radar acquisition.

    Attributes:
        ascending: the satellite flies north and looks east; otherwise it looks west.
        wind: roughness of water, dB above calm.
        wetness: soil moisture, dB on everything without a canopy.
    """

    ascending: bool
    wind: float
    wetness: float


def observe(rng: np.random.Generator, land: Landscape, circumstances: Pass) -> dict[str, Field]:
    """One acquisition of a landscape.

    Args:
        rng: randomness of this day: speckle, roughness, the state of every material.
        land: the place.
        circumstances: look direction, wind and wetness.

    Returns:
        "vv" and "vh", (px, px) float32 linear power, always positive.
    """
    px = len(land.cover)
    offset = rng.normal(0, 0.8, len(MATERIALS)).astype(np.float32)
    offset += np.float32(circumstances.wetness)
    offset[_WATER] = np.float32(circumstances.wind)
    down, right = gradient(cv2.GaussianBlur(land.elevation, (5, 5), 1.5))
    look = np.float32(math.radians(80 if circumstances.ascending else 280))
    facing = -right * np.sin(look) + down * np.cos(look)
    slope = np.clip(np.float32(26 * land.biome.relief) * facing, -4, 4)
    slope[land.material == _WATER] = 0
    rough = fractal(rng, px, 40, 4, 0.8) * np.float32(0.6) + np.float32(0.8) * land.grain
    common = offset[land.material] + slope + _TEXTURE[land.material] * rough
    cross = rng.normal(0, 0.5, len(MATERIALS)).astype(np.float32)
    image = {}
    for name, level in (("vv", _VV), ("vh", _VH + cross)):
        decibel = level[land.material] + common
        power = np.exp(decibel * np.float32(math.log(10) / 10))
        power = cv2.GaussianBlur(power, (3, 3), 0.6) + np.float32(NOISE_FLOOR * (name == "vh"))
        speckle = rng.standard_gamma(LOOKS, (px, px), dtype=np.float32) / np.float32(LOOKS)
        image[name] = np.maximum(power * speckle, np.float32(1e-6))
    return image

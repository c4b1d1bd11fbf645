"""What Sentinel-2 sees: surface reflectance (L2A) and the same through the atmosphere (L1C).

Surface spectra per material, mixed by greenness and season, shaded by slopes and clouds. At the
top of the atmosphere (Vermote et al. 1997, the 6S equation)

    rho_toa = T_gas * (rho_path + T * rho / (1 - S * rho))

with Rayleigh and aerosol path reflectance, two-way transmission T and spherical albedo S.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from terrafm.data.synthetic.landscape import MATERIALS, WATER, Landscape
from terrafm.data.synthetic.noise import Field, above, fractal, gradient

BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip
GSD = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20), strict=True))
WAVELENGTH = np.array(
    [0.443, 0.492, 0.560, 0.665, 0.704, 0.741, 0.783, 0.833, 0.865, 0.945, 1.374, 1.614, 2.202]
)  # micrometres
_COLOUR = ((WAVELENGTH - 0.9) / 1.3).astype(np.float32)  # about -0.35 to 1
# Absorption by water vapour per unit of (column)^0.5 and air mass, and by other gases.
_VAPOUR = np.array([0, 0, 0, 0.004, 0.012, 0.012, 0.002, 0.02, 0.001, 0.28, 2.2, 0.004, 0.01])
_OTHER = np.array([0.005, 0.01, 0.035, 0.025, 0.01, 0.01, 0.01, 0.005, 0, 0, 0.4, 0.01, 0.012])

# Reflectance * 10000 in the order of BANDS: lush and sere ends of every material.
_SPECTRA: dict[str, tuple[list[int], list[int] | None]] = {
    "broadleaf": (
        [170, 190, 370, 210, 640, 2100, 2700, 2850, 3000, 2950, 2100, 1350, 580],
        [330, 400, 600, 640, 1020, 1500, 1750, 1850, 2000, 2050, 1700, 1750, 980],
    ),
    "conifer": (
        [150, 170, 270, 190, 440, 1200, 1480, 1560, 1640, 1640, 1200, 820, 390],
        [200, 230, 340, 290, 560, 1150, 1360, 1430, 1510, 1500, 1150, 950, 500],
    ),
    "shrub": (
        [300, 340, 590, 520, 960, 1800, 2100, 2220, 2380, 2400, 1900, 1850, 1050],
        [480, 580, 830, 980, 1300, 1600, 1780, 1880, 2030, 2100, 1900, 2500, 1650],
    ),
    "grass": (
        [300, 350, 720, 470, 1150, 2700, 3300, 3450, 3600, 3600, 2600, 2000, 1000],
        [520, 650, 980, 1250, 1600, 1950, 2150, 2280, 2480, 2550, 2500, 3200, 2250],
    ),
    "cereal": (
        [280, 320, 700, 400, 1080, 3200, 4100, 4300, 4450, 4400, 3000, 1950, 880],
        [650, 820, 1200, 1600, 1950, 2300, 2500, 2650, 2850, 2900, 2700, 3500, 2500],
    ),
    "rapeseed": (
        [350, 420, 1350, 1050, 1750, 3000, 3500, 3650, 3800, 3800, 2800, 2200, 1150],
        [550, 700, 1150, 1300, 1700, 2300, 2600, 2750, 2900, 2950, 2600, 2900, 1900],
    ),
    "stubble": ([720, 900, 1280, 1680, 1980, 2250, 2420, 2550, 2720, 2750, 2600, 3600, 2750], None),
    "soil": ([620, 740, 1000, 1330, 1550, 1700, 1830, 1940, 2080, 2130, 2300, 2850, 2350], None),
    "roof": (
        [1250, 1380, 1500, 1620, 1680, 1760, 1830, 1880, 1950, 1980, 1900, 2050, 1920],
        None,
    ),
    "tile": (
        [700, 800, 1000, 1500, 1720, 1880, 2000, 2080, 2180, 2200, 2100, 2550, 2280],
        None,
    ),
    "asphalt": ([820, 880, 960, 1020, 1060, 1100, 1140, 1170, 1210, 1240, 1200, 1330, 1260], None),
    "bright_roof": (
        [3000, 3300, 3500, 3600, 3650, 3700, 3720, 3740, 3780, 3750, 3300, 3300, 2900],
        None,
    ),
    "sand": ([1150, 1500, 2200, 2950, 3250, 3420, 3560, 3680, 3850, 3900, 3900, 4700, 4250], None),
    "rock": ([780, 900, 1150, 1450, 1600, 1700, 1780, 1840, 1930, 1980, 2000, 2450, 2250], None),
    "snow": ([9000, 9050, 8950, 8800, 8750, 8650, 8500, 8350, 8100, 7500, 2500, 1150, 1000], None),
    "ice": ([6500, 6500, 6200, 5700, 5400, 5100, 4700, 4300, 3900, 3200, 600, 300, 260], None),
    "water": (
        [480, 450, 360, 190, 140, 105, 95, 80, 70, 60, 30, 40, 30],
        [640, 720, 980, 840, 700, 420, 400, 310, 280, 250, 60, 90, 60],
    ),
    "marsh": (
        [300, 340, 570, 450, 860, 1750, 2100, 2200, 2320, 2300, 1500, 1250, 620],
        [420, 520, 760, 860, 1180, 1480, 1620, 1700, 1800, 1800, 1500, 1700, 1050],
    ),
    "mangrove": (
        [180, 210, 360, 220, 600, 1750, 2200, 2320, 2420, 2350, 1500, 850, 380],
        None,
    ),
    "moss": (
        [380, 450, 700, 720, 1080, 1600, 1800, 1900, 2020, 2050, 1700, 1900, 1100],
        [520, 650, 920, 1120, 1350, 1520, 1620, 1700, 1830, 1880, 1800, 2250, 1500],
    ),
}
LUSH = np.array([_SPECTRA[m][0] for m in MATERIALS], np.float32) / 10000
SERE = np.array([_SPECTRA[m][1] or _SPECTRA[m][0] for m in MATERIALS], np.float32) / 10000
# Strength of fine texture per material: crowns, dunes, furrows, houses, swell.
_TEXTURE = {
    "broadleaf": 0.17, "conifer": 0.24, "shrub": 0.15, "grass": 0.045, "cereal": 0.09,
    "rapeseed": 0.07, "stubble": 0.09, "soil": 0.10, "roof": 0.14, "tile": 0.12, "asphalt": 0.06,
    "bright_roof": 0.16, "sand": 0.06, "rock": 0.16, "snow": 0.025, "ice": 0.08, "water": 0.05,
    "marsh": 0.12, "mangrove": 0.08, "moss": 0.10,
}  # fmt: skip
TEXTURE = np.array([_TEXTURE[m] for m in MATERIALS], np.float32)
# Ground of one kind is never even: soil, moisture and vigour change it over hundreds of metres.
# Standard deviations of log reflectance, overall and of its tilt towards the short-wave infrared.
_PATCHES = 45.0  # coarsest, pixels
_BRIGHTNESS, _TILT = 0.7, 1.1
_BRIGHTEST = 1.3  # reflectance of a slope that faces the sun
EVEN = np.array([m in ("water", "snow", "ice") for m in MATERIALS])
_CLOUD = np.array([0.70, 0.70, 0.69, 0.68, 0.68, 0.68, 0.68, 0.67, 0.67, 0.66, 0.30, 0.46, 0.36])


@dataclass(frozen=True)
class Scene:
    """Circumstances of one optical acquisition.

    Attributes:
        season: -1 (winter, dry) to 1 (peak of growth).
        sun_zenith, sun_azimuth: radians, azimuth from north through east.
        aerosol: optical thickness at 0.55 micrometres. vapour: column, cm.
        cloud: share of the scene under clouds, 0..1.
    """

    season: float
    sun_zenith: float
    sun_azimuth: float
    aerosol: float
    vapour: float
    cloud: float


@dataclass
class OpticalImage:
    """L2A and L1C reflectance, band -> (h, w) float32 at the band's own GSD, and what hid it.

    Attributes:
        l2a: 12 bands, no B10. l1c: 13 bands.
        cloud_mask: (px, px) uint8, 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow.
    """

    l2a: dict[str, Field]
    l1c: dict[str, Field]
    cloud_mask: NDArray[np.uint8]


def observe(rng: np.random.Generator, land: Landscape, scene: Scene) -> OpticalImage:
    """One acquisition of a landscape.

    Args:
        rng: randomness of this day: clouds, haze, the state of every material.
        land: the place, side a multiple of 6 pixels.
        scene: sun, season and air.
    """
    px = len(land.cover)
    lush, sere = _spectra_of_the_day(rng)
    green = 0.5 + 0.5 * np.clip(0.6 * land.biome.green + 0.5 * scene.season, -1, 1)
    season = np.where(land.cover == WATER, np.float32(0), np.float32(green))
    mix = np.clip(season + land.greenness, 0, 1)
    sun = _sunlight(land, scene)
    light = sun * (1 + TEXTURE[land.material] * land.grain)
    uneven = np.where(EVEN[land.material], np.float32(0.2), np.float32(1))
    light *= np.exp(np.float32(_BRIGHTNESS) * uneven * fractal(rng, px, _PATCHES, 20))
    tilt = np.float32(_TILT) * uneven * np.clip(fractal(rng, px, _PATCHES, 20), -2, 2)
    light += np.float32(0.02) * fractal(rng, px, 90, 20)
    thick, thin, shadow = _clouds(rng, px, scene)
    light *= 1 - np.float32(0.62) * shadow
    light = np.maximum(light, np.float32(0.06))
    haze = np.float32(scene.aerosol) * (1 + np.float32(0.25) * fractal(rng, px // 6, 90, 20))
    veil = 1 - np.exp(-(thick + thin))
    air = {gsd: _shrink(haze, px * 10 // gsd) for gsd in (10, 20, 60)}
    covers = {gsd: _shrink(veil, px * 10 // gsd) for gsd in (10, 20, 60)}
    high = _shrink(thin, px // 6) + np.float32(0.25) * _shrink(thick, px // 6)
    l2a, l1c = {}, {}
    for i, band in enumerate(BANDS):
        gsd = GSD[band]
        side = px * 10 // gsd
        # 60 m pixels average nine of 36: twice as fast, the same to the eye.
        step = 2 if gsd == 60 else 1
        material = land.material[::step, ::step]
        ground = sere[:, i][material]
        ground += (lush - sere)[:, i][material] * mix[::step, ::step]
        ground *= light[::step, ::step] * np.exp(_COLOUR[i] * tilt[::step, ::step])
        ground = np.minimum(ground, np.float32(_BRIGHTEST))
        ground = cv2.GaussianBlur(ground, (3, 3), 0.55) if gsd == 10 else _shrink(ground, side)
        noise = rng.standard_normal((side, side), dtype=np.float32)
        ground += np.float32(0.0012) * noise * (1 + 4 * ground)
        cloud = np.float32(_CLOUD[i]) * (1 + np.float32(0.03) * noise)
        seen = np.asarray(ground + (cloud - ground) * covers[gsd], np.float32)
        l1c[band] = _through_air(seen, i, scene, air[gsd], high if gsd == 60 else None)
        if band == "B10":
            continue
        # The processor divides by the full vapour column, though clouds stand above most of it.
        if band == "B09":
            seen = seen * (1 + np.float32(0.5) * covers[gsd])
        residual = np.float32(rng.normal(0, 0.25)) * _path(i, scene, air[gsd]) * 0.3
        l2a[band] = seen + residual
    mask = np.zeros((px, px), np.uint8)
    mask[shadow > 0.4] = 3
    mask[thin > 0.12] = 2
    mask[thick > 0.45] = 1
    return OpticalImage(l2a, l1c, mask)


def _spectra_of_the_day(rng: np.random.Generator) -> tuple[Field, Field]:
    # Soils, species and wetness differ between places: a gain, a tilt and a bend per material.
    count = len(MATERIALS)
    gain = rng.normal(0, 0.10, (count, 1)) + rng.normal(0, 0.03)
    tilt = rng.normal(0, 0.06, (count, 1)) * _COLOUR + rng.normal(0, 0.03, (count, 1)) * _COLOUR**2
    factor = np.exp(gain + tilt).astype(np.float32)
    top = np.minimum(LUSH * factor, 0.98)
    return top, np.minimum(SERE * factor, 0.98)


def _sunlight(land: Landscape, scene: Scene) -> Field:
    down, right = gradient(cv2.GaussianBlur(land.elevation, (5, 5), 1.2))
    slope = np.float32(9.0 * land.biome.relief)
    toward = -right * np.float32(np.sin(scene.sun_azimuth)) + down * np.float32(
        np.cos(scene.sun_azimuth)
    )
    toward[land.cover == WATER] = 0
    lit = 1 + slope * toward * np.float32(np.tan(min(scene.sun_zenith, 1.2)))
    return np.asarray(np.clip(lit, 0.25, 1.8), np.float32)


def _clouds(rng: np.random.Generator, px: int, scene: Scene) -> tuple[Field, Field, Field]:
    """Optical thickness of thick and of thin cloud, and shadow 0..1, each (px, px)."""
    none = np.zeros((px, px), np.float32)
    if scene.cloud <= 0:
        return none, none, none
    shape = fractal(rng, px, rng.uniform(60, 420), 3, 0.6)
    mask = above(shape, scene.cloud * 0.85)
    base = shape[mask].min() if mask.any() else np.float32(np.inf)
    thick = np.clip((shape - base + np.float32(0.12)) * 2.6, 0, 4).astype(np.float32)
    streaks = fractal(rng, px, 380, 12, 0.5)
    thin = np.clip((streaks - 0.9 + np.float32(scene.cloud)) * 0.35, 0, 0.8).astype(np.float32)
    reach = rng.uniform(12, 45) * np.tan(min(scene.sun_zenith, 1.2))
    move = np.array(
        [
            [1, 0, -reach * np.sin(scene.sun_azimuth)],
            [0, 1, reach * np.cos(scene.sun_azimuth)],
        ]
    )
    cast = cv2.warpAffine(thick, move, (px, px), borderMode=cv2.BORDER_REPLICATE)
    shadow = cv2.GaussianBlur(1 - np.exp(-cast), (5, 5), 1.5)
    return thick, thin, np.asarray(shadow, np.float32)


def _path(i: int, scene: Scene, aerosol: Field) -> Field:
    slant = 4 * np.cos(scene.sun_zenith)
    rayleigh = 0.00877 * WAVELENGTH[i] ** -4.05
    haze = (WAVELENGTH[i] / 0.55) ** -1.3
    return np.asarray(
        np.float32(1.15 * rayleigh / slant) + np.float32(0.30 * haze / slant) * aerosol
    )


def _through_air(
    ground: Field, i: int, scene: Scene, aerosol: Field, high_cloud: Field | None
) -> Field:
    mass = 1 / np.cos(scene.sun_zenith) + 1
    rayleigh = 0.00877 * WAVELENGTH[i] ** -4.05
    haze = float((WAVELENGTH[i] / 0.55) ** -1.3)
    transmitted = np.exp(-mass * np.float32(0.16 * haze) * aerosol) * np.float32(
        np.exp(-mass * 0.5 * rayleigh)
    )
    albedo = np.float32(0.9 * rayleigh)
    gas = np.float32(np.exp(-mass * (_VAPOUR[i] * np.sqrt(scene.vapour) + 0.5 * _OTHER[i])))
    seen = _path(i, scene, aerosol) + transmitted * ground / (1 - albedo * ground)
    toa = gas * seen
    if BANDS[i] == "B10" and high_cloud is not None:
        # Only what floats above the vapour comes back in the cirrus band.
        toa = toa + np.float32(0.0012) + np.float32(0.05) * high_cloud
    return np.asarray(toa, np.float32)


def _shrink(field: Field, side: int) -> Field:
    if field.shape[0] == side:
        return field
    method = cv2.INTER_AREA if field.shape[0] > side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(field, (side, side), interpolation=method), np.float32)

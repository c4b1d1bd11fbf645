"""Dates, product names and processing baselines as the archives have them."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from terrafm.data.synthetic.globe import Footprint
from terrafm.data.synthetic.optics import Scene
from terrafm.data.synthetic.radar import Pass

# Share, processing baseline of L1C and of L2A; from N0400 on 1000 is added, but not for N9999.
_BASELINES = (
    (0.40, "N0400", "N0400"),
    (0.22, "N0510", "N0510"),
    (0.22, "N0301", "N0301"),
    (0.06, "N0209", "N0214"),
    (0.07, "N0301", "N0500"),
    (0.03, "N9999", "N9999"),
)


@dataclass(frozen=True)
class OpticalDate:
    """One Sentinel-2 acquisition over a cell: names of both products and its circumstances."""

    time: datetime
    l1c: str
    l2a: str
    scene: Scene


@dataclass(frozen=True)
class RadarDate:
    """One Sentinel-1 acquisition over a cell."""

    time: datetime
    product: str
    circumstances: Pass


def offset(product_id: str) -> int:
    """Digital numbers added to reflectance * 10000 by the product's baseline."""
    baseline = product_id.split("_")[3]
    return 1000 if "N0400" <= baseline < "N9999" else 0


def optical_date(rng: np.random.Generator, place: Footprint, clouds: float) -> OpticalDate:
    """Draws one Sentinel-2 acquisition.

    Args:
        rng: source of randomness.
        place: the cell; its position decides season, sun and the names.
        clouds: mean cloud cover of the archive, 0..1.
    """
    shares = np.array([share for share, _, _ in _BASELINES])
    _, first, second = _BASELINES[rng.choice(len(shares), p=shares / shares.sum())]
    newest = max(first, second) if max(first, second) != "N9999" else "N0400"
    start, days = {"N0400": (2022, 600), "N0510": (2023, 420), "N0500": (2018, 1200)}.get(
        newest, (2018, 1200)
    )
    time = datetime(start, 2, 1) + timedelta(days=int(rng.integers(days)))
    solar = 10.5 - place.longitude / 15 + rng.normal(0, 0.2)
    time += timedelta(seconds=int(solar * 3600))
    name = (
        f"S2{'AB'[rng.integers(2)]}_MSI{{level}}_{time:%Y%m%dT%H%M%S}_{{baseline}}"
        f"_R{rng.integers(1, 144):03d}_T{place.mgrs}_{{made:%Y%m%dT%H%M%S}}"
    )
    made = time + timedelta(seconds=int(rng.integers(3 * 3600, 8 * 3600)))
    l1c = name.format(level="L1C", baseline=first, made=made)
    l2a = name.format(level="L2A", baseline=second, made=made + timedelta(seconds=4321))
    return OpticalDate(time, l1c, l2a, _scene(rng, time, place.latitude, clouds))


def _scene(rng: np.random.Generator, time: datetime, latitude: float, clouds: float) -> Scene:
    year = 2 * math.pi * (time.timetuple().tm_yday - 80) / 365.25
    declination = math.radians(23.44) * math.sin(year)
    phi = math.radians(latitude)
    # Hour angle of about 10:30 local solar time.
    hour = math.radians(-22.5)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(
        hour
    )
    # Polar winters have no optical images; the archive keeps the sun above ten degrees.
    zenith = min(math.acos(max(-1.0, min(1.0, up))), math.radians(72))
    azimuth = math.radians(145 if latitude > math.degrees(declination) else 40)
    growth = math.sin(year - 0.5) * (1 if latitude >= 0 else -1) * min(1.0, abs(latitude) / 35)
    season = float(np.clip(0.75 * growth + rng.normal(0, 0.35), -1, 1))
    # Half of the kept scenes are clear, the others share the clouds.
    cloudy = clouds > 0 and rng.random() < 0.55
    cloud = float(min(rng.gamma(1.6, clouds / (0.55 * 1.6)), 0.75)) if cloudy else 0.0
    aerosol = float(np.clip(rng.lognormal(math.log(0.12), 0.6), 0.03, 0.6))
    vapour = float(np.clip(4.5 * math.cos(phi) ** 2 * rng.uniform(0.4, 1.1), 0.2, 6))
    return Scene(season, zenith, azimuth, aerosol, vapour, cloud)


def radar_date(rng: np.random.Generator, near: datetime) -> RadarDate:
    """Draws one Sentinel-1 acquisition, zero to nine days from an optical one."""
    days = int(rng.integers(-9, 10)) if rng.random() < 0.3 else int(rng.integers(-3, 4))
    ascending = bool(rng.random() < 0.5)
    time = datetime(near.year, near.month, near.day) + timedelta(days=days)
    time += timedelta(seconds=int(rng.integers(64800 if ascending else 21600, 86399)))
    orbit = int(rng.integers(20000, 54000))
    product = (
        f"S1A_IW_GRDH_1SDV_{time:%Y%m%dT%H%M%S}_{time + timedelta(seconds=25):%Y%m%dT%H%M%S}"
        f"_{orbit:06d}_{int(rng.integers(1 << 20)):06X}_rtc"
    )
    weather = Pass(ascending, float(rng.normal(0, 2.2)), float(rng.normal(0, 0.7)))
    return RadarDate(time, product, weather)

"""What sets say of their bands, as torchgeo-bench writes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BandSpec:
    """As in torchgeo_bench.datasets.base."""

    sensor: str
    name: str
    source_name: str
    mean: float
    std: float
    min: float
    max: float
    wavelength_um: float | None = None


def optical(name, mean=1200.0, high=17000.0, sensor="s2"):
    return BandSpec(sensor, name, name.upper(), mean, 0.3 * mean, 0.0, high)


def radar(name, mean, low=-60.0, high=20.0, sensor="s1"):
    return BandSpec(sensor, name, name.upper(), mean, 4.0, low, high)


EUROSAT = [
    optical(name, 12.0 if name == "swir_cirrus" else 1200.0)
    for name in (
        "coastal_aerosol", "blue", "green", "red", "red_edge_1", "red_edge_2", "red_edge_3", "nir",
        "water_vapour", "swir_cirrus", "swir_1", "swir_2", "red_edge_4",
    )
]  # fmt: skip

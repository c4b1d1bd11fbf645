"""Band statistics that others have published, to hold a dataset's own against."""

from __future__ import annotations

from terrafm.modalities import MODALITIES

REFERENCE_NAME = "SSL4EO-S12's statistics"
# Wang et al. 2023 (arXiv 2211.07044): means and standard deviations of 50,000 places, from
# `ssl4eo_dataset.py` of the authors' repository (zhu-xlab/SSL4EO-S12). Sentinel-2 in digital
# numbers, Sentinel-1 (ground range detected, not terrain corrected) in dB.
_S1 = ((-12.548, -20.192), (5.257, 5.912))
_L2A = (
    (752.4, 884.3, 1144.2, 1297.5, 1624.9, 2194.6, 2422.2, 2517.8, 2581.6, 2645.5, 2368.5, 1805.1),
    (
        1108.0,
        1155.2,
        1183.6,
        1368.1,
        1370.3,
        1355.6,
        1416.5,
        1474.8,
        1439.3,
        1582.3,
        1455.5,
        1343.5,
    ),
)
# Without the cirrus band, which no sensor here has.
_L1C = (
    (1605.6, 1390.8, 1314.9, 1363.5, 1549.4, 2091.7, 2371.7, 2299.9, 2560.3, 830.1, 2177.1, 1524.1),
    (786.8, 850.3, 875.1, 1138.8, 1122.2, 1161.6, 1274.4, 1248.4, 1345.5, 577.3, 1336.1, 1136.5),
)

Statistics = dict[str, tuple[float, float]]


def _physical(name: str, means: tuple[float, ...], stds: tuple[float, ...]) -> Statistics:
    modality = MODALITIES[name]
    scale = 1.0 if modality.unit == "dB" else modality.scale
    bands = zip(modality.bands, means, stds, strict=True)
    return {band: (mean * scale, std * scale) for band, mean, std in bands}


REFERENCE: dict[str, Statistics] = {
    "s1": _physical("s1", *_S1),
    "s2_l2a": _physical("s2_l2a", *_L2A),
    "s2_l1c": _physical("s2_l1c", *_L1C),
}
"""Modality -> band -> mean and standard deviation, in the modality's unit."""

"""A small archive of GeoTIFFs: Sentinel-2 at 10 m, Landsat and heights at 30 m, land cover."""

import numpy as np
import rasterio

from terrafm.modalities import MODALITIES

LANDSAT_BANDS = tuple(f"SR_B{number}" for number in range(1, 8))
SIDE = 192


def landsat_numbers(reflectance):
    """Collection 2's integers, 0 where there is no measurement."""
    numbers = np.rint((reflectance + 0.2) / 2.75e-5)
    return np.where(np.isnan(reflectance), 0, numbers).astype(np.uint16)


def write_archive(root, places=4, seed=0):
    """Writes it; returns per place (reflectance (7, 64, 64), heights (64, 64))."""
    rng = np.random.default_rng(seed)
    truth = {}
    for number in range(places):
        name, corner = f"place{number}", (500000 + 10000 * number, 5000000)
        coarse = np.kron(rng.uniform(0.02, 0.5, (7, 8, 8)), np.ones((1, 8, 8)))
        coarse[:, :4, :4] = np.nan
        height = rng.uniform(-20, 60, (64, 64)).astype(np.float32)
        height[0, :8] = 0
        height[1, :8] = -9999
        optical = rng.integers(300, 3000, (12, SIDE, SIDE)).astype(np.uint16)
        cover = np.full((1, SIDE, SIDE), (10, 30)[number % 2], np.uint8)
        bands = MODALITIES["s2_l2a"].bands
        _write(root / "S2L2A" / f"{name}.tif", optical, 10, corner, bands)
        numbers = landsat_numbers(coarse)
        _write(root / "landsat" / f"{name}.tif", numbers, 30, corner, LANDSAT_BANDS)
        _write(root / "copdem" / f"{name}.tif", height[None], 30, corner, None, -9999)
        _write(root / "LULC" / f"{name}.tif", cover, 10, corner, None)
        truth[name] = coarse, height
    return truth


def _write(path, pixels, gsd, corner, names, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype.name, count=len(pixels),
        height=pixels.shape[1], width=pixels.shape[2], crs="EPSG:32633", nodata=nodata,
        transform=rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
    ) as file:  # fmt: skip
        file.write(pixels)
        file.update_tags(datetime="2022-07-06T08:56:11")
        for number, name in enumerate(names or (), start=1):
            file.set_band_description(number, name)

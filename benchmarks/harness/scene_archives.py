"""One scene as an archive of every source that reads such pixels, as the tests write them."""

import importlib
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from harness.archive import write_land_cover
from harness.pixels import TILE, tiles
from harness.scenes import BANDS, CORNER, EPSG, mosaic, write_items, write_scene

SAMPLE = 264
"""Side of TerraMesh's samples, pixels."""
_DISTINCT = 16


def write_archives(folder: Path, real: Path, side: int) -> None:
    """Level-2A of side x side tiles as SAFE (folder and zip), EOPF, COGs, GeoTIFFs, TerraMesh."""
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    distinct = [tile.raw["s2_l2a"] for tile in tiles(real, _DISTINCT)]
    pixels = {band: mosaic(distinct, band, side, 0) for band in BANDS}
    safe, eopf = (_of_tests(name) for name in ("safe_products", "eopf_products"))
    product = safe.Product(
        pixels, time="20220706T085611", corner=CORNER, epsg=EPSG, cloud=0.0,
        # As real products are tiled.
        profile={"blockxsize": 1024, "blockysize": 1024},
    )  # fmt: skip
    safe.write_safe(folder / "safe", product)
    safe.write_zip(folder / "safe zip", product, zipfile.ZIP_DEFLATED)
    eopf.write_eopf(folder / "eopf", product, chunk=1830)
    write_scene(folder / "stac" / "scene0", pixels)
    write_items(folder / "stac", 1, side)
    stack = np.stack([np.kron(pixels[b], np.ones((g // 10,) * 2, pixels[b].dtype))
                      for b, g in BANDS.items()])  # fmt: skip
    _write_places(folder / "geotiff" / "S2L2A", stack)
    _write_samples(folder / "terramesh" / "S2L2A", stack)
    # The scene reaches over 45 degrees north.
    for name in ("N45E015", "N42E015"):
        write_land_cover(folder / "worldcover", name, whole=True)
    (folder / "complete").touch()


def _of_tests(name: str) -> Any:
    tests = str(Path(__file__).resolve().parents[2] / "tests" / "data")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module(name)


def _write_places(folder: Path, stack: NDArray[Any]) -> None:
    folder.mkdir(parents=True)
    for top in range(0, stack.shape[1], TILE):
        for left in range(0, stack.shape[2], TILE):
            part = stack[:, top : top + TILE, left : left + TILE]
            with rasterio.open(
                folder / f"place_{top:05d}_{left:05d}.tif", "w", driver="GTiff", count=len(part),
                height=TILE, width=TILE, dtype=part.dtype.name, crs=f"EPSG:{EPSG}",
                compress="deflate", predictor=2, tiled=True, blockxsize=256, blockysize=256,
                transform=rasterio.Affine(10, 0, CORNER[0] + left * 10, 0, -10,
                                          CORNER[1] - top * 10),
            ) as file:  # fmt: skip
                file.write(part)
                for number, band in enumerate(BANDS, start=1):
                    file.set_band_description(number, band)


def _write_samples(folder: Path, stack: NDArray[Any]) -> None:
    shards = _of_tests("zarr_shards")
    samples: dict[str, bytes] = {}
    step = SAMPLE
    for top in range(0, stack.shape[1] - step + 1, step):
        for left in range(0, stack.shape[2] - step + 1, step):
            part = stack[None, :, top : top + step, left : left + step].astype(np.int16)
            corner = CORNER[0] + left * 10, CORNER[1] - top * 10
            samples[f"majortom_val_{len(samples):07d}"] = shards.sample("S2L2A", part, corner)
    shards.write_shard(folder / "majortom_shard_000001.tar", samples)

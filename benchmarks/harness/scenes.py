"""Scenes as COGs for benchmarks: Level-2A bands at their own resolutions, and items of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer

from harness.pixels import TILE, is_real, tiles
from terrafm.modalities import MODALITIES

SENSOR = MODALITIES["s2_l2a"]
BANDS = dict(zip(SENSOR.bands, SENSOR.gsd, strict=True))
EPSG, CORNER = 32633, (600000, 5000040)
# Earth Search's and Planetary Computer's blocks and compression.
_COG = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "predictor": 2}  # fmt: skip
_DISTINCT = 16


def write_scenes(folder: Path, real: Path, count: int, side: int) -> list[dict[str, Any]]:
    """Scenes of side x side tiles; those that are there already stay.

    Args:
        folder: gets items.json, and a folder of COGs for each scene.
        real: folder of real samples.
        count: scenes.
        side: tiles along each side of one.

    Returns:
        Their STAC items.
    """
    done = folder / "items.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        distinct = [tile.raw["s2_l2a"] for tile in tiles(real, _DISTINCT)]
        for number in range(count):
            pixels = {band: mosaic(distinct, band, side, number) for band in BANDS}
            write_scene(folder / f"scene{number}", pixels)
        write_items(folder, count, side)
    return list(json.loads(done.read_text())["features"])


def scene_name(real: Path, count: int, side: int) -> str:
    """Of the folder of such scenes."""
    return f"scenes-{'real' if is_real(real) else 'synthetic'}-{count}x{side}"


def mosaic(
    distinct: list[dict[str, NDArray[Any]]], band: str, side: int, seed: int
) -> NDArray[Any]:
    """A band of a scene: tiles in an order of its own, so that no two scenes are the same."""
    order = np.random.default_rng(seed).integers(0, len(distinct), (side, side))
    return np.concatenate(
        [np.concatenate([distinct[n][band] for n in row], axis=1) for row in order]
    )


def write_items(folder: Path, count: int, side: int) -> None:
    """Their items, as items.json."""
    features = [_item(number, side) for number in range(count)]
    content = {"type": "FeatureCollection", "features": features}
    (folder / "items.json").write_text(json.dumps(content))


def write_scene(folder: Path, bands: dict[str, NDArray[Any]]) -> None:
    """Its bands as BAND.tif."""
    folder.mkdir(parents=True)
    for band, pixels in bands.items():
        gsd = BANDS[band]
        with rasterio.open(
            folder / f"{band}.tif", "w", dtype=pixels.dtype.name, count=1, crs=f"EPSG:{EPSG}",
            height=pixels.shape[0], width=pixels.shape[1],
            transform=rasterio.Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1]), **_COG,
        ) as file:  # fmt: skip
            file.write(pixels, 1)


def _item(number: int, side: int) -> dict[str, Any]:
    metres = side * TILE * 10
    left, top = CORNER
    to_degrees = Transformer.from_crs(EPSG, 4326, always_xy=True)
    corners = [(left, top), (left + metres, top), (left + metres, top - metres),
               (left, top - metres), (left, top)]  # fmt: skip
    ring = [list(to_degrees.transform(*corner)) for corner in corners]
    assets = {
        band: {
            "href": f"scene{number}/{band}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "proj:shape": [metres // gsd, metres // gsd],
            "proj:transform": [gsd, 0, left, 0, -gsd, top],
            "eo:bands": [{"name": band}],
            "raster:bands": [{"data_type": "uint16", "nodata": 0}],
        }
        for band, gsd in BANDS.items()
    }
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": f"S2A_L2A_{number}",
        "collection": "sentinel-2-l2a",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
        ],
        "bbox": [min(x for x, _ in ring), min(y for _, y in ring),
                 max(x for x, _ in ring), max(y for _, y in ring)],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"2022-07-{number + 1:02d}T08:56:11Z", "platform": "sentinel-2a",
            "eo:cloud_cover": 0, "proj:epsg": EPSG, "grid:code": f"MGRS-33T{chr(65 + number)}L",
        },
        "assets": assets, "links": [],
    }  # fmt: skip

"""Land cover of the synthetic Earth as tiles of ESA WorldCover 2021: EPSG:4326, 3 x 3 degrees."""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window

PIXELS_PER_DEGREE = 12_000
TILE = 3  # degrees
_LEGEND = """10  Tree cover
20  Shrubland
30  Grassland
40  Cropland
50  Built-up
60  Bare/sparse vegetation
70  Snow and ice
80  Permanent water bodies
90  Herbaceous wetland
95  Mangroves
100 Moss and lichen
"""


def tile_name(latitude: int, longitude: int) -> str:
    """File name of the tile whose south-west corner is given in whole degrees."""
    north = f"{'S' if latitude < 0 else 'N'}{abs(latitude):02d}"
    east = f"{'W' if longitude < 0 else 'E'}{abs(longitude):03d}"
    return f"ESA_WorldCover_10m_2021_v200_{north}{east}_Map.tif"


def warp(
    cover: NDArray[np.uint8], epsg: int, left: float, top: float
) -> tuple[int, int, NDArray[np.uint8]]:
    """A cell's land cover on WorldCover's global pixel grid, nearest neighbour.

    Returns:
        Row counted south from 90 N, column counted east from 180 W, and the codes; 0 outside
        the cell.
    """
    px = len(cover)
    bounds = transform_bounds(epsg, 4326, left, top - 10 * px, left + 10 * px, top, densify_pts=21)
    west, south, east, north = bounds
    column = math.floor((west + 180) * PIXELS_PER_DEGREE) - 2
    row = math.floor((90 - north) * PIXELS_PER_DEGREE) - 2
    width = math.ceil((east + 180) * PIXELS_PER_DEGREE) + 2 - column
    height = math.ceil((90 - south) * PIXELS_PER_DEGREE) + 2 - row
    # A margin of the outermost pixels: the footprint's edge never falls on an empty pixel.
    margin = 3
    source = np.pad(cover, margin, mode="edge")
    codes = np.zeros((height, width), np.uint8)
    reproject(
        source,
        codes,
        src_crs=f"EPSG:{epsg}",
        src_transform=rasterio.Affine(10, 0, left - 10 * margin, 0, -10, top + 10 * margin),
        dst_crs="EPSG:4326",
        dst_transform=_grid(row, column),
        resampling=Resampling.nearest,
    )
    return row, column, codes


def write_tiles(folder: Path, pieces: Iterable[tuple[int, int, NDArray[np.uint8]]]) -> list[Path]:
    """Writes pieces of land cover into tiles of the full 36000 x 36000 grid, sparse.

    Only blocks that hold land cover take room in the file.

    Args:
        folder: where the tiles go.
        pieces: row, column and codes as `warp` gives them.
    """
    side = TILE * PIXELS_PER_DEGREE
    by_tile: dict[tuple[int, int], list[tuple[int, int, NDArray[np.uint8]]]] = defaultdict(list)
    for row, column, codes in pieces:
        for i in range(row // side, (row + codes.shape[0] - 1) // side + 1):
            for j in range(column // side, (column + codes.shape[1] - 1) // side + 1):
                top, left = max(i * side, row), max(j * side, column)
                part = codes[
                    top - row : (i + 1) * side - row, left - column : (j + 1) * side - column
                ]
                by_tile[i, j].append((top - i * side, left - j * side, part))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for (i, j), parts in sorted(by_tile.items()):
        latitude, longitude = 90 - TILE * (i + 1), TILE * j - 180
        path = folder / tile_name(latitude, longitude)
        profile: dict[str, Any] = {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "width": side, "height": side,
            "crs": "EPSG:4326", "transform": _grid(i * side, j * side), "nodata": 0,
            "tiled": True, "blockxsize": 1024, "blockysize": 1024, "compress": "deflate",
            "SPARSE_OK": True,
        }  # fmt: skip
        with rasterio.open(path, "w+", **profile) as tile:
            tile.update_tags(
                legend=_LEGEND, product_tile=path.name.split("_")[5], product_type="LandCover Map",
                product_version="V2.0.0", product_grid="3x3 degree tiling grid",
                title="Synthetic land cover in the layout of ESA WorldCover 2021",
            )  # fmt: skip
            for top, left, part in parts:
                window = Window(left, top, part.shape[1], part.shape[0])
                # Footprints are turned against the grid: what lies beside them stays.
                before = tile.read(1, window=window) if len(parts) > 1 else 0
                tile.write(np.where(part > 0, part, before).astype(np.uint8), 1, window=window)
        paths.append(path)
    return paths


def _grid(row: int, column: int) -> rasterio.Affine:
    step = 1 / PIXELS_PER_DEGREE
    return rasterio.Affine(step, 0, column * step - 180, 0, -step, 90 - row * step)

"""A Major-TOM archive of any number of cells, each holding the bands of one of the test tiles."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.windows import Window

from harness.tiles import TestTiles
from terrafm.modalities import MODALITIES

_FOLDERS = {"s2_l2a": "Core-S2L2A", "s2_l1c": "Core-S2L1C", "s1": "Core-S1RTC"}
_PRODUCTS = {
    "s2_l2a": "S2A_MSIL2A_20220706T085611_N0400_R007_T33TVK_20220706T1534{:05d}",
    "s2_l1c": "S2A_MSIL1C_20220706T085611_N0400_R007_T33TVK_20220706T1034{:05d}",
    "s1": "S1A_IW_GRDH_1SDV_20220706T051230_20220706T051255_{:06d}_rtc",
}
_PER_PART = 16


def write_archive(tiles: TestTiles, folder: Path, cells: int) -> None:
    """Writes the archive with a WorldCover tile beside it, unless an earlier run did."""
    seal = folder / "complete"
    if seal.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for modality, name in _FOLDERS.items():
        (folder / name / "images").mkdir(parents=True)
        rows = []
        for first in range(0, cells, _PER_PART):
            part = f"images/part_{first // _PER_PART + 1:05d}.parquet"
            numbers = range(first, min(first + _PER_PART, cells))
            _write_part(folder / name / part, tiles, modality, numbers)
            rows += [_metadata(modality, number, part, number - first) for number in numbers]
        pq.write_table(pa.Table.from_pylist(rows), folder / name / "metadata.parquet")
    write_land_cover(folder / "worldcover")
    seal.touch()


def _write_part(path: Path, tiles: TestTiles, modality: str, numbers: range) -> None:
    writer = None
    for number in numbers:
        source = tiles.geotiffs / f"tile_{number % tiles.count:05d}" / modality
        bands = {
            band.lower() if modality == "s1" else band: (source / f"{band}.tif").read_bytes()
            for band in MODALITIES[modality].bands
        }
        product = _PRODUCTS[modality].format(number)
        row = {"product_id": product, "grid_cell": _cell(number), "thumbnail": b"", **bands}
        table = pa.Table.from_pylist([row])
        writer = writer or pq.ParquetWriter(
            path, table.schema, compression="none", use_dictionary=False, write_statistics=False
        )
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _metadata(modality: str, number: int, part: str, row: int) -> dict[str, Any]:
    return {
        "grid_cell": _cell(number),
        "product_id": _PRODUCTS[modality].format(number),
        "timestamp": "2022-07-06 08:56:11",
        "cloud_cover": 0.0,
        "nodata": 0.0,
        "centre_lat": 45.12,
        "centre_lon": 15.03,
        "crs": "EPSG:32633",
        "parquet_url": part,
        "parquet_row": row,
    }


def _cell(number: int) -> str:
    return f"502U_{number}R"


def write_land_cover(folder: Path, name: str = "N45E015", *, whole: bool = False) -> None:
    """A WorldCover tile of trees under the test tiles, or all over.

    Args:
        folder: to write into.
        name: of the tile: latitude and longitude of its south-west corner.
        whole: whether all of it is trees.
    """
    folder.mkdir(exist_ok=True)
    south, west = int(name[1:3]), int(name[4:7])
    with rasterio.open(
        folder / f"ESA_WorldCover_10m_2021_v200_{name}_Map.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=36000,
        width=36000,
        crs="EPSG:4326",
        transform=rasterio.Affine(1 / 12000, 0, west, 0, -1 / 12000, south + 3),
        nodata=0,
        tiled=True,
        blockxsize=1024,
        blockysize=1024,
        compress="deflate",
        sparse_ok=True,
    ) as file:
        if whole:
            for row in range(0, 36000, 3600):
                strip = np.full((3600, 36000), 10, np.uint8)
                file.write(strip, 1, window=Window(0, row, 36000, 3600))
            return
        # The tiles' ground: 5.3 km south and east of 45.15 N, 15 E.
        file.write(np.full((1800, 1200), 10, np.uint8), 1, window=Window(0, 33800, 1200, 1800))

"""A tile as GeoTIFFs that any map program opens with its place, bands and physical values."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile

from terrafm.data.shards.crs import raster_crs
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.manifest import CellGroup
from terrafm.modalities import MODALITIES
from terrafm.storage import join, to_json, write_bytes


def export_tile(uri: str, tile_id: str, output: str) -> list[str]:
    """Writes one GeoTIFF for each cell group that a tile has.

    Pixels are the storage integers. Scale, unit and nodata stand beside them, so that physical
    values (dB, reflectance) are pixel times scale; land cover, products and decisions are tags.

    Args:
        uri: the dataset's folder.
        tile_id: the tile's id.
        output: URI of the folder to write into.

    Returns:
        URIs of the files, named TILE_ID_GROUP.tif.

    Raises:
        UsageError: there is no such dataset or tile; names the nearest ids.
        TerraFMError: a cell cannot be read.
    """
    dataset = Dataset.open(uri)
    row = dataset.row_of(tile_id)
    described = dataset.tile(row)
    pixels = dataset.read_tile(row)
    written = []
    for group in dataset.groups:
        if group.name in pixels:
            target = join(output, f"{tile_id}_{group.name}.tif")
            write_bytes(target, _geotiff(dataset, group, described, pixels[group.name]))
            written.append(target)
    return written


def _geotiff(
    dataset: Dataset, group: CellGroup, tile: dict[str, Any], pixels: NDArray[Any]
) -> bytes:
    modality = MODALITIES[group.modality]
    coarser = group.gsd / dataset.gsd
    a, b, c, d, e, f = tile["transform"]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=len(group.bands),
            height=group.height,
            width=group.width,
            dtype=np.dtype(group.dtype).name,
            crs=raster_crs(tile["crs"]),
            transform=Affine(a * coarser, b * coarser, c, d * coarser, e * coarser, f),
            nodata=modality.nodata,
            compress="deflate",
            predictor=2,
        ) as file:
            file.write(pixels)
            file.scales = [modality.scale] * len(group.bands)
            file.units = [modality.unit] * len(group.bands)
            for number, band in enumerate(group.bands, start=1):
                file.set_band_description(number, band)
            file.update_tags(**_tags(dataset, group, tile))
        return bytes(memory.getbuffer())


def _tags(dataset: Dataset, group: CellGroup, tile: dict[str, Any]) -> dict[str, str]:
    code = tile["land_cover"]
    tags = {
        "TILE_ID": tile["tile_id"],
        "DATASET_FINGERPRINT": dataset.fingerprint,
        "MODALITY": group.modality,
        "LAND_COVER": str(code),
        "LAND_COVER_NAME": dataset.legend.get(code, f"class {code}"),
        "LAND_COVER_HISTOGRAM": json.dumps({str(k): n for k, n in tile["histogram"].items()}),
        "PRODUCT": to_json(tile["products"].get(group.modality, {}), sort_keys=True),
    }
    # GDAL takes UTF-8 alone, and no NUL.
    return {
        key: text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        for key, text in tags.items()
    }

"""The same scenes, or places, as an archive of each source that reads them."""

from pathlib import Path

import numpy as np
from eopf_products import write_eopf
from safe_products import BANDS, Product, ground, write_safe
from test_stac import collection, item
from zarr_shards import write_archive

SOURCES = ("safe", "stac", "terramesh", "eopf")


def write_dates(source, folder, dates, size=264, baseline="0400"):
    """An archive of Level-2A scenes of one place, one for each date; what `--input` takes."""
    folder = Path(folder)
    if source == "terramesh":
        # Its places lie beside each other, and each has one date.
        write_archive(folder / "val", dates, size, folders=("S2L2A", "LULC"))
        return folder
    products = [
        Product(ground(1, size=size, bands=BANDS), time=f"2022{n // 28 + 1:02d}{n % 28 + 1:02d}"
                "T085611", baseline=baseline)
        for n in range(dates)
    ]  # fmt: skip
    if source == "stac":
        items = [item(folder, product) for product in products]
        return collection(folder / "items.json", *items)
    for product in products:
        (write_safe if source == "safe" else write_eopf)(folder, product)
    return folder


def raster_of(source, folder, number):
    """The files of one date's band, or of a place, to damage."""
    folder = Path(folder)
    patterns = {"safe": "*.SAFE/**/*_B04_10m.jp2", "stac": "*/red.tif",
                "eopf": "*.zarr/measurements/reflectance/r10m/b04/0.0"}  # fmt: skip
    return sorted(folder.glob(patterns[source]))[number]


def options(source, size, grid=None, dates=99):
    """Of the command line, without Ray."""
    said = ["--source", source, "--tile-size", str(size), "--set", "ingest.workers=0",
            "--set", "ingest.require_modalities=[s2_l2a]",
            "--set", "ingest.ocean_drop=0"]  # fmt: skip
    if source != "terramesh":
        said += ["--set", f"ingest.dates_per_place={dates}"]
        said += ["--grid", grid] if grid else []
    return said


def cover_of(worldcover_tile):
    """Land cover under all of them."""
    return str(worldcover_tile("N45E015", np.full((2500, 3500), 10, np.uint8), 33500, 14000))

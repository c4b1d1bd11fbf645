"""EOPF Zarr products of Sentinel-2 for tests, written by zarr itself as the converter writes them.

Groups, attributes, types, chunks and codec are those of public samples, cut down to what anything
reads.
"""

import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc
from safe_products import GSD, footprint_of

CODEC = Blosc("zstd", 3, Blosc.BITSHUFFLE)


def write_eopf(folder, product, *, chunk=None, consolidated=True, placed=True, scales=True,
               flags=None, changed=None):  # fmt: skip
    """Writes a `safe_products.Product` as PRODUCT.zarr; returns it.

    Args:
        folder: to write into.
        product: pixels and what is said of them.
        chunk: pixels of 10 m along each side of a chunk; a sixth of a tile as published.
        consolidated: whether there is a .zmetadata.
        placed: whether arrays state their place, or coordinates alone do.
        scales: whether bands state scale and offset.
        flags: Level-1C's classification at 60 m.
        changed: attributes of the hierarchy that differ.
    """
    path = Path(folder) / f"{product.name}.zarr"
    chunk = chunk or max(6, product.shape[0] // 6)
    offset = product.offset
    if offset is None:
        offset = -1000 if int(product.baseline) >= 400 else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        root = zarr.open_group(path, mode="w", zarr_format=2)
        root.attrs.update(_attributes(product) | (changed or {}))

        def add(name, values, gsd, **attributes):
            group = root.require_group(name.rpartition("/")[0])
            if placed:
                attributes |= {
                    "proj:epsg": product.epsg, "proj:shape": list(values.shape),
                    "proj:transform": [float(gsd), 0.0, float(product.corner[0]), 0.0, -float(gsd),
                                       float(product.corner[1]), 0.0, 0.0, 1.0],
                }  # fmt: skip
            side = chunk * 10 // gsd
            group.create_array(
                name.rpartition("/")[2], data=values, chunks=(side, side), compressors=CODEC,
                fill_value=0 if values.dtype == np.uint16 else None, attributes=attributes,
            )  # fmt: skip
            for axis, start, step, count in (
                ("x", product.corner[0] + gsd // 2, gsd, values.shape[1]),
                ("y", product.corner[1] - gsd // 2, -gsd, values.shape[0]),
            ):
                if axis not in group:
                    places = start + step * np.arange(count, dtype=np.int64)
                    group.create_array(axis, data=places, compressors=CODEC)

        for band, pixels in product.pixels.items():
            if band == "B10" and product.level == "L2A":
                continue
            said = {}
            if scales:
                step = 1 / product.quantification
                said = {"scale_factor": step, "add_offset": offset * step}
            own = {"_eopf_attrs": said, "_ARRAY_DIMENSIONS": ["y", "x"], **said}
            add(f"measurements/reflectance/r{GSD[band]}m/{band.lower()}", pixels, GSD[band], **own)
            if GSD[band] == 10:
                # As published: every band at all coarser resolutions as well.
                coarser = pixels[::2, ::2] // 2
                add(f"measurements/reflectance/r20m/{band.lower()}", coarser, 20, **own)
        if product.scl is not None:
            add("conditions/mask/l2a_classification/r20m/scl", product.scl.astype(np.uint8), 20)
        if flags is not None:
            add("conditions/mask/l1c_classification/r60m/b00", flags.astype(np.uint8), 60,
                flag_masks=[1, 2, 4], flag_meanings=["OPAQUE", "CIRRUS", "SNOW_ICE"])  # fmt: skip
        if consolidated:
            zarr.consolidate_metadata(path, zarr_format=2)
    return path


def pack(path, method=zipfile.ZIP_STORED, top=""):
    """The product as a zip beside it, which takes its place."""
    target = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(target, "w", method) as packed:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                packed.write(file, f"{top}{file.relative_to(path)}")
    shutil.rmtree(path)
    return target


def _attributes(product):
    date = product.time
    time = f"{date[:4]}-{date[4:6]}-{date[6:11]}:{date[11:13]}:{date[13:]}.024000+00:00"
    ring = [list(corner) for corner in [*footprint_of(product), footprint_of(product)[0]]]
    return {
        "stac_discovery": {
            "type": "Feature", "id": f"{product.name}.SAFE",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "datetime": None, "start_datetime": time, "end_datetime": time,
                "platform": "sentinel-2a", "eo:cloud_cover": product.cloud,
                "eopf:baseline": f"{product.baseline[:2]}.{product.baseline[2:]}",
                "product:type": f"S02MSI{product.level}", "proj:epsg": product.epsg,
            },
        },
        "other_metadata": {"horizontal_CRS_code": f"EPSG:{product.epsg}"},
    }  # fmt: skip

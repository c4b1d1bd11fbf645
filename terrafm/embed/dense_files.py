"""Rasters of patch embeddings: a band for each dimension, as a cloud-optimised GeoTIFF or as Zarr.

Both are made of a plain GeoTIFF, which is written block by block, and appear whole.
"""

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.windows import Window

import terrafm
from terrafm.data.shards.crs import raster_crs
from terrafm.embed.choices import DenseFormat
from terrafm.embed.quantisation import NO_NUMBER, Scales
from terrafm.embed.schema import DENSE
from terrafm.embed.stac import RasterFacts, RasterItems, as_uri
from terrafm.storage import exists, is_local, join, resolve, upload

# All bands of a pixel lie together: a block of 128 x 128 is 50 MB of terrafm_base already.
BLOCK = 128
_COG = {
    "driver": "COG",
    "BLOCKSIZE": BLOCK,
    "COMPRESS": "ZSTD",
    "PREDICTOR": "YES",
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
}
_ROOT = "zarr.json"
# https://github.com/geo-embeddings/embeddings-zarr-convention and those for the place.
_CONVENTIONS = [
    {"name": "geoemb:", "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c"},
    {"name": "proj:", "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f"},
    {"name": "spatial", "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4"},
]


@dataclass(frozen=True)
class DenseStyle:
    """How the rasters of a folder are written, and what they say of themselves.

    Attributes:
        form: GeoTIFF or Zarr.
        is_int8: a byte for each number, with scales of each file's own.
        model: URI of the weights.
        data: URI of what was embedded.
        tags: what else is said.
        items: writes the STAC item of each; None writes none.
    """

    form: DenseFormat
    is_int8: bool
    model: str
    data: str
    tags: dict[str, str]
    items: RasterItems | None = None

    def uri(self, output: str, name: str) -> str:
        """Where the patch embeddings of a tile or file lie."""
        suffix = {DenseFormat.GEOTIFF: "tif", DenseFormat.ZARR: "zarr"}[self.form]
        return join(output, DENSE, f"{name}.{suffix}")

    def exists(self, uri: str) -> bool:
        """Whether a raster is there, whole."""
        return exists(join(uri, _ROOT) if self.form is DenseFormat.ZARR else uri)

    def finish(
        self, plain: Path, output: str, name: str, found: RasterFacts, more: Mapping[str, str]
    ) -> None:
        """Makes of a plain GeoTIFF the raster that is wanted, and its STAC item.

        Args:
            plain: its path; beside it lies what is made on the way.
            output: URI of the folder of embeddings.
            name: of the tile or file.
            found: what the raster does not say of itself.
            more: tags of this file alone.
        """
        folder, uri = plain.parent, self.uri(output, name)
        if self.items is not None:
            # Before the raster: one that is there is not made again by an interrupted command.
            with rasterio.open(plain) as raster:
                self.items.write(output, name, uri, raster, found)
        if self.form is DenseFormat.GEOTIFF:
            rasterio.shutil.copy(plain, folder / "made.tif", **_COG)
            _put(folder / "made.tif", uri)
            return
        with rasterio.open(plain) as raster:
            attributes = self._attributes(raster, {**self.tags, **more})
            _write_zarr(raster, folder / "made.zarr", attributes, found.scales)
        _put_folder(folder / "made.zarr", uri)

    def _attributes(self, raster: Any, tags: Mapping[str, str]) -> dict[str, Any]:
        """Of the group: what it is by `geoemb:`, where it lies by `proj:` and `spatial:`."""
        code = raster.crs.to_authority()
        place = (
            {"proj:code": ":".join(code)} if code else {"proj:wkt2": raster.crs.to_wkt("WKT2_2019")}
        )
        found: dict[str, Any] = {
            "zarr_conventions": _CONVENTIONS,
            "geoemb:type": "pixel",
            "geoemb:dimensions": raster.count,
            "geoemb:model": as_uri(self.model),
            "geoemb:source_data": [as_uri(self.data)],
            "geoemb:data_type": "int8" if self.is_int8 else "float32",
            "geoemb:build_version": f"terrafm {terrafm.__version__}",
            **place,
            "spatial:dimensions": ["y", "x"],
            "spatial:transform": list(raster.transform)[:6],
            "spatial:shape": list(raster.shape),
            "spatial:bbox": list(raster.bounds),
            "terrafm": dict(tags),
        }
        if raster.crs.is_projected:
            found["geoemb:gsd"] = abs(raster.transform.a)
        if self.is_int8:
            found["geoemb:quantization"] = {
                "method": "linear",
                "original_dtype": "float32",
                "quantized_dtype": "int8",
            }
        return found


def profile(shape: tuple[int, ...], crs: str, transform: Any, is_int8: bool) -> dict[str, Any]:
    """Of a plain GeoTIFF of (D, h, w) numbers."""
    dim, height, width = shape
    return {
        "driver": "GTiff",
        "count": dim,
        "height": height,
        "width": width,
        "dtype": "int8" if is_int8 else "float32",
        "crs": raster_crs(crs),
        "transform": transform,
        "nodata": NO_NUMBER if is_int8 else float("nan"),
        "interleave": "pixel",
    }


def describe(raster: Any, tags: Mapping[str, str], scales: Scales | None) -> None:
    """Names the bands of a raster that is being written, and says what its numbers are."""
    raster.descriptions = [f"embedding_{number:03d}" for number in range(raster.count)]
    raster.update_tags(**tags)
    if scales is not None:
        raster.scales, raster.offsets = scales.scale, scales.offset


def encoded(patches: NDArray[np.float32], scales: Scales | None) -> NDArray[Any]:
    """Patches (D, h, w) as they are stored."""
    if scales is None:
        return patches
    rows = scales.encode(np.moveaxis(patches, 0, -1).reshape(-1, len(patches)))
    return np.moveaxis(rows.reshape(*patches.shape[1:], -1), -1, 0)


def _write_zarr(
    raster: Any, folder: Path, attributes: dict[str, Any], scales: Scales | None
) -> None:
    """Writes a Zarr group of format 3: `embeddings` (embedding, y, x) and its coordinates."""
    import zarr
    from zarr.codecs import BloscCodec

    dim, (height, width) = raster.count, raster.shape
    group = zarr.create_group(store=folder, zarr_format=3, attributes=attributes)
    embeddings = group.create_array(
        "embeddings",
        shape=(dim, height, width),
        chunks=(dim, min(height, BLOCK), min(width, BLOCK)),
        dtype=raster.dtypes[0],
        fill_value=raster.nodata if scales is None else NO_NUMBER,
        compressors=BloscCodec(cname="zstd", shuffle="shuffle"),
        dimension_names=("embedding", "y", "x"),
        attributes={"grid_mapping": "spatial_ref"}
        | ({} if scales is None else {"_FillValue": NO_NUMBER}),
    )
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            down, across = min(BLOCK, height - top), min(BLOCK, width - left)
            block = raster.read(window=Window(left, top, across, down))
            embeddings[:, top : top + down, left : left + across] = block
    a, b, c, d, e, f = list(raster.transform)[:6]
    coordinates = {
        "x": (a * (np.arange(width) + 0.5) + c, ("x",)),
        "y": (e * (np.arange(height) + 0.5) + f, ("y",)),
        "embedding": (np.arange(dim, dtype=np.int32), ("embedding",)),
    }
    if b or d:
        # Of a turned grid neither depends on one of the two alone.
        del coordinates["x"], coordinates["y"]
    if scales is not None:
        # The convention's scales are one for all, or one for each pixel; these are by dimension.
        for name, values in (("scale", scales.scale), ("offset", scales.offset)):
            coordinates[name] = (np.array(values, np.float32), ("embedding",))
    for name, (values, dimensions) in coordinates.items():
        group.create_array(name, data=values, dimension_names=dimensions)
    crs = {"crs_wkt": raster.crs.to_wkt(), "GeoTransform": f"{c} {a} {b} {f} {d} {e}"}
    group.create_array("spatial_ref", data=np.array(0, np.int32), attributes=crs)
    with warnings.catch_warnings():
        # Format 3 does not have it yet; xarray asks for it, and warns where it is missing.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(folder)


def _put(file: Path, uri: str) -> None:
    """Moves a file to a URI, whole or invisible."""
    if not is_local(uri):
        upload(file, uri)
        return
    target = Path(resolve(uri)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place first: the temporary folder may be on another disk.
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        upload(file, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _put_folder(folder: Path, uri: str) -> None:
    """Copies a Zarr group to a URI; a reader sees it when all of it is there."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    if not is_local(uri):
        # Without the group's own document there is no group.
        for file in sorted(files, key=lambda path: str(path) == _ROOT):
            upload(folder / file, join(uri, file.as_posix()))
        return
    target = Path(resolve(uri)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for file in files:
            (beside / file).parent.mkdir(parents=True, exist_ok=True)
            upload(folder / file, beside / file)
        # Another worker may have been faster with the same part.
        if not target.exists():
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

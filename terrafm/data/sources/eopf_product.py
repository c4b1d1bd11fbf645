"""What an EOPF Zarr product of Sentinel-2 says: bands, grids, offsets, clouds, footprint.

    PRODUCT.zarr/.zattrs                              stac_discovery (a STAC item), other_metadata
    PRODUCT.zarr/measurements/reflectance/r10m/b02    digital numbers; scale_factor, add_offset,
                                                      proj:epsg, proj:transform; x and y beside it
    PRODUCT.zarr/conditions/mask/l2a_classification/r20m/scl
    PRODUCT.zarr/conditions/mask/l1c_classification/r60m/b00    flags: 1 opaque, 2 cirrus, 4 snow

https://cpm.pages.eopf.copernicus.eu/eopf-cpm/main/PSFD/ describes the format.
"""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.bands import CIRRUS
from terrafm.data.sources.offsets import claimed_offset
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.safe_metadata import ground_of, parse_name
from terrafm.data.sources.scenes.scene import Layer, Scene
from terrafm.data.sources.stac_item import polygon_of
from terrafm.modalities import MODALITIES
from terrafm.storage.zarr_arrays import ArrayInfo, BadZarrError
from terrafm.storage.zarr_store import ZarrStore
from terrafm.storage.zip_members import BadZipError

_TYPE = re.compile(r"S0?2[A-D]?_?MSIL?(1C|2A)")
_LEVELS = {"1C": "s2_l1c", "2A": "s2_l2a"}
_REFLECTANCE = "measurements/reflectance/r{}m/{}"
_SCL = "conditions/mask/l2a_classification/r20m/scl"
_FLAGS = "conditions/mask/l1c_classification/r60m/b00"
_TILE = re.compile(r"_T(\d{2}[C-X][A-Z]{2})(?=_|$|\.)")
_EPSG = re.compile(r"(?:EPSG:)?(32[67](?:0[1-9]|[1-5]\d|60))$")
_LARGEST = 20_000
_STEPS = 10_000.0
_USUAL_ADD = (0.0, -1000.0)


def modality_named(name: str) -> str | None:
    """Of a product by its name or type: `S2A_MSIL2A_...`, `S02MSIL1C`; None for any other."""
    found = _TYPE.match(name)
    return _LEVELS[found.group(1)] if found else None


def product_type(store: ZarrStore) -> str:
    """What a product says that it is, such as "S02MSIL2A", or "".

    Raises:
        BadZarrError: its attributes are damaged.
    """
    return str(_object(_object(store.attributes, "stac_discovery"), "properties")
               .get("product:type") or "")  # fmt: skip


def read_product(store: ZarrStore, name: str, modality: str) -> Scene:
    """The scene of a product. Only metadata are read.

    Args:
        store: it.
        name: of its folder or zip, without suffixes.
        modality: "s2_l1c" or "s2_l2a".

    Raises:
        BadCellError: it cannot be used.
        StoreRefusedError, StoreFailedError: a store does not answer.
    """
    try:
        return _read(store, name, modality)
    except (OSError, BadZipError, BadZarrError) as error:
        raise BadCellError(store.uri, str(error)) from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise BadCellError(store.uri, f"its attributes are not as EOPF has them: {error}") from None


def _read(store: ZarrStore, name: str, modality: str) -> Scene:
    item = _object(store.attributes, "stac_discovery")
    properties = _object(item, "properties")
    sensor = MODALITIES[modality]
    native = dict(zip(sensor.bands, sensor.gsd, strict=True))
    if modality == "s2_l1c":
        native[CIRRUS] = 60
    infos: dict[str, ArrayInfo] = {}
    layers: dict[str, Layer] = {}
    for band, gsd in native.items():
        path = _REFLECTANCE.format(gsd, band.lower())
        info = store.info(path)
        if info is not None:
            infos[band] = info
            layers[band] = Layer(store.uri, array=path, grid=_grid(store, path, info, gsd))
    if not set(layers) - {CIRRUS}:
        raise BadCellError(f"{store.uri.rstrip('/')}/measurements/reflectance",
                           "no band in it: a partial download?")  # fmt: skip
    grids = {layer.grid.gsd: layer.grid for layer in layers.values() if layer.grid}
    finest = grids[min(grids)]
    product_id = str(item.get("id") or name).removesuffix(".SAFE")
    # Products that were converted keep the name of the SAFE product; others have one of their own.
    named = parse_name(product_id, None) or parse_name(name, None)
    stated = properties.get("datetime") or properties.get("start_datetime")
    moment = (named.time if named else None) or parse_time(str(stated or ""))
    baseline = str(properties.get("eopf:baseline") or properties.get("processing:version") or "")
    steps, add, claim = _quantities(store, infos, baseline)
    clouds = properties.get("eo:cloud_cover")
    tile = _TILE.search(product_id) or _TILE.search(name)
    code = str(properties.get("grid:code") or "").removeprefix("MGRS-")
    try:
        outline = polygon_of(item, store.uri)
    except (BadCellError, TypeError, ValueError, KeyError, AttributeError):
        outline = None
    number = "".join(re.findall(r"\d", baseline)) or _baseline_of(product_id)
    return Scene(
        modality=modality,
        product_id=product_id,
        source=store.uri,
        time=moment.isoformat() if moment else "",
        footprint=ground_of(outline, finest),
        layers=layers,
        cloud_cover=float(clouds) if isinstance(clouds, int | float) and 0 <= clouds <= 100
        else None,
        tile=tile.group(1) if tile else code or product_id,
        grid=finest,
        claim=claim,
        quantification=steps,
        add=add,
        mask=_mask(store, modality),
        age=(int(number) if number.isdigit() else 0, product_id.rpartition("_")[2]),
    )  # fmt: skip


def _mask(store: ZarrStore, modality: str) -> tuple[Layer, str] | None:
    path, gsd, kind = (_SCL, 20, "scl") if modality == "s2_l2a" else (_FLAGS, 60, "flags")
    info = store.info(path)
    if info is None:
        return None
    return Layer(store.uri, array=path, grid=_grid(store, path, info, gsd)), kind


def _grid(store: ZarrStore, path: str, info: ArrayInfo, gsd: int) -> Grid:
    """Where an array lies: what it states itself, else by its coordinates."""
    attributes = info.attributes
    item = _object(store.attributes, "stac_discovery")
    properties = _object(item, "properties")
    other = _object(store.attributes, "other_metadata")
    said = [attributes.get("proj:epsg"), attributes.get("proj:code"), properties.get("proj:epsg"),
            properties.get("proj:code"), other.get("horizontal_CRS_code")]  # fmt: skip
    code = next((str(word) for word in said if word), "")
    found = _EPSG.fullmatch(code)
    if found is None:
        raise BadZarrError(f"array {path} lies in {shortened(code)}, not a zone of UTM")
    if len(info.shape) != 2 or not all(0 < side <= _LARGEST for side in info.shape):
        raise BadZarrError(f"array {path} has the shape {info.shape}")
    transform = attributes.get("proj:transform")
    left, top = _stated(transform, path) if transform else _by_coordinates(store, path, info, gsd)
    if transform and (float(transform[0]), float(transform[4])) != (gsd, -gsd):
        raise BadZarrError(f"array {path} has pixels of {transform[0]} x {transform[4]}, not {gsd}")
    if not (isfinite(left) and isfinite(top) and abs(left) < 1e7 and abs(top) < 2e7):
        raise BadZarrError(f"array {path} has its corner at {left:g}, {top:g}")
    shape = info.shape[0], info.shape[1]
    return Grid(f"EPSG:{found.group(1)}", (gsd, 0.0, left, 0.0, -gsd, top), shape, gsd)


def _stated(transform: Any, path: str) -> tuple[float, float]:
    a, b, left, d, e, top = (float(value) for value in transform[:6])
    if b or d or a <= 0 or e >= 0:
        raise BadZarrError(f"array {path} is not north-up")
    return left, top


def _by_coordinates(store: ZarrStore, path: str, info: ArrayInfo, gsd: int) -> tuple[float, float]:
    """The corner, by the centres of pixels."""
    folder = path.rpartition("/")[0]
    x, y = (store.read(f"{folder}/{axis}").astype(np.float64) for axis in ("x", "y"))
    if (len(y), len(x)) != info.shape:
        raise BadZarrError(f"array {path} has {info.shape} pixels, and {len(y)} x {len(x)} places")
    if (np.diff(x) != gsd).any() or (np.diff(y) != -gsd).any():
        raise BadZarrError(f"array {path} has no north-up pixels of {gsd} m by its coordinates")
    return float(x[0]) - gsd / 2, float(y[0]) + gsd / 2


def _quantities(
    store: ZarrStore, infos: Mapping[str, ArrayInfo], baseline: str
) -> tuple[float, dict[str, float], tuple[int, str] | None]:
    """Steps of reflectance, what is added by band, and what is claimed of the offset."""
    stated = {}
    for band, info in infos.items():
        attributes = {**_object(info.attributes, "_eopf_attrs"), **info.attributes}
        scale, offset = attributes.get("scale_factor"), attributes.get("add_offset")
        if scale is None and offset is None:
            continue
        steps = 1.0 / float(scale or 1.0 / _STEPS)
        if not 1 <= steps <= 1e6:
            raise BadZarrError(f"band {band} has the scale_factor {scale}")
        stated[band] = round(steps, 3), round(float(offset or 0.0) * steps, 3)
    if not stated:
        return _STEPS, {}, claimed_offset({"PROCESSING_BASELINE": baseline}, offset_tag=False)
    if len(stated) < len(infos):
        raise BadZarrError("some of its bands have a scale_factor and others have none")
    if len({steps for steps, _ in stated.values()}) > 1:
        raise BadZarrError("its bands have scales of their own")
    add = {band: added for band, (_, added) in stated.items()}
    steps = next(iter(stated.values()))[0]
    if steps == _STEPS and set(add.values()) <= set(_USUAL_ADD) and len(set(add.values())) == 1:
        return _STEPS, {}, (int(abs(next(iter(add.values())))), "add_offset")
    # Other numbers than any archive has: the metadata are the only ones who know.
    return steps, add, (0, "add_offset")


def _baseline_of(product_id: str) -> str:
    found = re.search(r"_N(\d{4})_", product_id)
    return found.group(1) if found else ""


def _object(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise BadZarrError(f"{key} is no JSON object")
    return found or {}

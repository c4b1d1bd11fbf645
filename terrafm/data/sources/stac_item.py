"""One item of STAC: the scene that its assets make."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np

from terrafm.data.archive import BadCellError
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.bands import CIRRUS, canonical
from terrafm.data.sources.offsets import claimed_offset
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.open_layers import read_header
from terrafm.data.sources.scenes.scene import Layer, Scene
from terrafm.data.sources.scenes.signing import Signer
from terrafm.modalities import MODALITIES

_SUFFIXES = (".tif", ".tiff")
_TIFF = "image/tiff"
_STEPS = 10_000.0


def read_item(
    where: str,
    item: Mapping[str, Any],
    modality: str,
    locate: Callable[[str, Any], str],
    sign: Signer | None = None,
) -> Scene:
    """A scene of an item's assets.

    Args:
        where: the document that it stands in.
        item: it.
        modality: its sensor and level.
        locate: (document, href) -> address, where the href may lead there.
        sign: signs addresses where a header has to be read.

    Raises:
        BadCellError: it cannot be used.
        TypeError, ValueError, KeyError, AttributeError: it is not as STAC has it.
    """
    properties = item.get("properties") or {}
    assets = {k: a for k, a in (item.get("assets") or {}).items() if isinstance(a, dict)}
    name = f"{where} item {item.get('id')}"
    sensor = MODALITIES[modality]
    native = dict(zip(sensor.bands, sensor.gsd, strict=True)) | {CIRRUS: 60}
    chosen: dict[str, tuple[bool, Layer, dict[str, Any]]] = {}
    scl: Layer | None = None
    for key, asset in assets.items():
        if not _is_geotiff(asset):
            continue
        band = _band(key, asset, modality)
        is_scl = key.lower().split("_")[0] == "scl"
        if not is_scl and (band is None or band not in native):
            continue
        layer = Layer(locate(where, asset.get("href")), grid=_grid(asset, properties))
        if is_scl or band is None:
            scl = scl or layer
            continue
        fits = layer.grid is not None and layer.grid.gsd == native[band]
        if band not in chosen or (fits and not chosen[band][0]):
            chosen[band] = fits, layer, asset
    if not set(chosen) - {CIRRUS}:
        raise BadCellError(name, f"it has no asset that is a GeoTIFF of a band of {modality}")
    layers = {band: layer for band, (_, layer, _) in chosen.items()}
    grid = _finest(layers, native, sign)
    scale, add, claim = _quantities({b: a for b, (_, _, a) in chosen.items()}, properties)
    tile = properties.get("s2:mgrs_tile") or properties.get("grid:code") or ""
    product = properties.get("s2:product_uri") or properties.get("s2:product_id")
    clouds = properties.get("eo:cloud_cover")
    baseline = str(properties.get("s2:processing_baseline") or "").replace(".", "")
    time = str(properties.get("datetime") or properties.get("start_datetime") or "")
    moment = parse_time(time)
    return Scene(
        modality=modality,
        product_id=str(product or item["id"]).removesuffix(".SAFE"),
        source=name,
        time=moment.isoformat() if moment else "",
        footprint=polygon_of(item, name),
        layers=layers,
        cloud_cover=float(clouds) if isinstance(clouds, int | float) else None,
        tile=str(tile).removeprefix("MGRS-") or str(item["id"]),
        grid=grid,
        claim=claim,
        quantification=1.0 / scale,
        add=add,
        mask=(scl, "scl") if scl is not None and modality == "s2_l2a" else None,
        age=(int(baseline) if baseline.isdigit() else 0, str(properties.get("updated") or "")),
        origin={
            "item": str(item["id"]),
            "collection": str(item.get("collection") or ""),
            "hrefs": {band: layer.uri for band, layer in sorted(layers.items())},
        },
    )


def _finest(
    layers: dict[str, Layer], native: Mapping[str, int], sign: Signer | None
) -> Grid | None:
    """The grid of a band of 10 m; of an item that does not state it its header is read."""
    band = min(layers, key=lambda name: native[name])
    if layers[band].grid is None:
        layers[band] = Layer(layers[band].uri, grid=read_header(layers[band], sign)[0])
    return layers[band].grid


def modality_of(item: Mapping[str, Any]) -> str | None:
    """Of an item, by what it says of platform, collection and level; None for other sensors."""
    properties = item.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    keys = ("constellation", "platform", "s2:product_type", "s2:product_uri", "processing:level",
            "product:type")  # fmt: skip
    said = [item.get("collection"), item.get("id"), *(properties.get(key) for key in keys)]
    words = " ".join(str(word) for word in said if word).lower()
    if "sentinel-1" in words or "s1a_" in words or "s1b_" in words or "s1c_" in words:
        return "s1"
    if "sentinel-2" in words or "s2a_" in words or "s2b_" in words or "s2c_" in words:
        for modality, signs in (("s2_l1c", ("l1c", "msi1c")), ("s2_l2a", ("l2a", "msi2a"))):
            if any(sign in words for sign in signs):
                return modality
    return None


def _is_geotiff(asset: Mapping[str, Any]) -> bool:
    kind, href = str(asset.get("type") or ""), str(asset.get("href") or "").partition("?")[0]
    return kind.startswith(_TIFF) or (not kind and href.lower().endswith(_SUFFIXES))


def _band(key: str, asset: Mapping[str, Any], modality: str) -> str | None:
    stated = asset.get("eo:bands") or asset.get("bands") or []
    if isinstance(stated, list) and len(stated) == 1 and isinstance(stated[0], dict):
        names = [stated[0].get(k) for k in ("name", "common_name", "eo:common_name")]
        found = [band for name in names if name and (band := _named(str(name), modality))]
        if found:
            return found[0]
    elif isinstance(stated, list) and len(stated) > 1:
        return None
    return _named(key, modality)


# Ten thousand items have a dozen names.
@lru_cache(maxsize=1024)
def _named(name: str, modality: str) -> str | None:
    return canonical(name, modality)


def _grid(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> Grid | None:
    """What an item states of a raster's grid; None where it does not, or not of a plain one."""
    both = {**properties, **asset}
    code = both.get("proj:code") or both.get("proj:epsg")
    crs = f"EPSG:{code}" if isinstance(code, int) else str(code or "")
    transform, shape = asset.get("proj:transform"), asset.get("proj:shape")
    digits = crs.removeprefix("EPSG:")
    if not (crs.startswith("EPSG:") and digits.isdigit() and transform and shape):
        return None
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    rows, columns = (int(side) for side in shape)
    plain = all(map(isfinite, (a, c, e, f))) and a > 0 > e and not b and not d
    if not plain or rows < 1 or columns < 1:
        return None
    return Grid(crs, (a, 0.0, c, 0.0, e, f), (rows, columns), round(a))


def _quantities(
    assets: Mapping[str, Mapping[str, Any]], properties: Mapping[str, Any]
) -> tuple[float, dict[str, float], tuple[int, str] | None]:
    """Reflectance of a step, what is added by band, and what is claimed of the offset."""
    pairs = {}
    for band, asset in assets.items():
        stated = asset.get("raster:bands") or asset.get("bands") or [{}]
        first = stated[0] if isinstance(stated, list) and isinstance(stated[0], dict) else {}
        scale = first.get("scale", first.get("raster:scale", asset.get("raster:scale")))
        offset = first.get("offset", first.get("raster:offset", asset.get("raster:offset")))
        pairs[band] = float(scale or 1 / _STEPS), float(offset or 0.0)
    scales = {round(scale * _STEPS, 6) for scale, _ in pairs.values()}
    applied = properties.get("earthsearch:boa_offset_applied")
    baseline = {"PROCESSING_BASELINE": str(properties.get("s2:processing_baseline") or "")}
    if applied is True:
        claim: tuple[int, str] | None = (0, "boa_offset_applied")
    elif any(offset for _, offset in pairs.values()):
        steps = {round(-offset / scale) for scale, offset in pairs.values()}
        claim = (1000, "raster:bands") if steps == {1000} else None
        if claim is None:
            scale = next(iter(pairs.values()))[0]
            return scale, {b: offset / s for b, (s, offset) in pairs.items()}, (0, "raster:bands")
    else:
        claim = claimed_offset(baseline, offset_tag=False)
    if scales == {1.0}:
        return 1 / _STEPS, {}, claim
    if len(scales) > 1:
        raise ValueError("its bands have scales of their own")
    steps_off = -float(claim[0]) if claim else 0.0
    return next(iter(pairs.values()))[0], dict.fromkeys(pairs, steps_off), (0, "raster:bands")


def polygon_of(item: Mapping[str, Any], name: str) -> tuple[tuple[float, float], ...]:
    """An item's geometry as corners in degrees.

    Raises:
        BadCellError: it is no polygon in degrees.
        TypeError, ValueError, KeyError, AttributeError: it is not as STAC has it.
    """
    geometry = item.get("geometry") or {}
    rings = geometry.get("coordinates") or []
    if geometry.get("type") == "MultiPolygon":
        # Both sides of the antimeridian are one piece of ground.
        points = [point for polygon in rings for point in polygon[0]]
    else:
        points = list(rings[0]) if rings else []
    corners = np.array([[float(x), float(y)] for x, y, *_ in points])
    if len(corners) < 3 or not (np.abs(corners) <= (180, 90)).all():
        raise BadCellError(name, "its geometry is no polygon in degrees")
    if geometry.get("type") == "MultiPolygon":
        west, east = float(item["bbox"][0]), float(item["bbox"][2])
        south, north = float(corners[:, 1].min()), float(corners[:, 1].max())
        return ((west, north), (east, north), (east, south), (west, south))
    return tuple((float(x), float(y)) for x, y in corners)

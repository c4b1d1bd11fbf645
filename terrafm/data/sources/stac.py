"""STAC items of one-band GeoTIFFs: a file of items, one item, or a static catalogue.

    ARCHIVE/items.json             an ItemCollection, as a search answers
    ARCHIVE/catalog.json           a catalogue or collection: its links to children and items
    https://host/collection.json   the same on a server; pixels are read by ranges

Assets are bands by their `eo:bands` or `bands` (name, common name) or else by their keys, as Earth
Search, Planetary Computer and CDSE have them. Where an item states projection, transform and
shape, no raster is opened while listing.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.bands import CIRRUS, canonical
from terrafm.data.sources.folders import for_all, read_json
from terrafm.data.sources.offsets import claimed_offset
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.engine import Found, SceneSource
from terrafm.data.sources.scenes.pixels import read_header
from terrafm.data.sources.scenes.scene import Layer, Scene
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, is_local

_SUFFIXES = (".tif", ".tiff")
_TIFF = "image/tiff"
_MOST_DEEP = 12
# Where an item may send a reader, beside the catalogue's own place; see docs/security.md.
_PUBLISHED = ("https://", "s3://")
_STEPS = 10_000.0
_LINKS = ("child", "item")


class StacItems(SceneSource):
    """The `stac` source."""

    def find(self) -> Found:
        """Items by their JSON.

        Raises:
            UsageError: there is no such file, or it is no STAC.
        """
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        items, broken = self._items()
        counts = Counter({"items": len(items)})
        scenes: list[Scene] = []
        for (where, item), found in zip(items, for_all(self._scene, items), strict=True):
            if isinstance(found, BadCellError):
                modality = _modality(item) or self._modalities[0]
                if modality in self._modalities:
                    broken.append((shortened(item.get("id", where)), modality, found))
            elif found is None:
                counts["items_of_others"] += 1
            else:
                scenes.append(found)
        return Found(scenes, broken, counts)

    def _items(
        self,
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str, BadCellError]]]:
        """(URI, item) of all items, and links that lead nowhere."""
        items: list[tuple[str, dict[str, Any]]] = []
        broken: list[tuple[str, str, BadCellError]] = []
        seen, waiting = {self._uri}, [self._uri]
        for _ in range(_MOST_DEEP):
            following: list[str] = []
            for where, content in zip(waiting, for_all(_read, waiting), strict=True):
                if isinstance(content, BadCellError):
                    if where == self._uri:
                        raise UsageError(str(content))
                    broken.append((where.rpartition("/")[2], self._modalities[0], content))
                    continue
                kind = content.get("type")
                if kind == "FeatureCollection":
                    features = content.get("features")
                    items += [(where, f) for f in features or () if isinstance(f, dict)]
                elif kind == "Feature":
                    items.append((where, content))
                elif "links" in content:
                    for link in content["links"] if isinstance(content["links"], list) else ():
                        if isinstance(link, dict) and link.get("rel") in _LINKS:
                            try:
                                target = self._locate(where, link.get("href"))
                            except BadCellError as fault:
                                broken.append((where, self._modalities[0], fault))
                                continue
                            if target not in seen:
                                seen.add(target)
                                following.append(target)
                elif where == self._uri:
                    raise UsageError(f"{where} is no STAC: neither items, a catalogue nor a "
                                     "collection")  # fmt: skip
            waiting = following
            if not waiting:
                break
        return items, broken

    def _locate(self, where: str, href: Any) -> str:
        """An address in a file of the catalogue, which leads nowhere but below or to the public.

        Raises:
            BadCellError: it does.
        """
        if not isinstance(href, str) or not href or "::" in href:
            raise BadCellError(where, f"href is {shortened(href)}")
        root = self._uri.rpartition("/")[0]
        if "://" in href and not href.startswith("file://"):
            scheme, _, rest = self._uri.partition("://")
            own = f"{scheme}://{rest.partition('/')[0]}/" if rest else None
            if href.startswith(_PUBLISHED) or (own and href.startswith(own)):
                return href
            raise BadCellError(where, f"{href[:80]} is neither public nor beside the catalogue")
        path = href.removeprefix("file://")
        scheme, separator, base = where.rpartition("/")[0].rpartition("://")
        joined = posixpath.normpath(posixpath.join(base, path))
        target = f"{scheme}{separator}{joined}"
        if is_local(self._uri) and not target.startswith(f"{root}/"):
            raise BadCellError(where, f"{href[:80]} leads out of {root}")
        return target

    def _scene(self, entry: tuple[str, dict[str, Any]]) -> Scene | BadCellError | None:
        where, item = entry
        modality = _modality(item)
        if modality not in self._modalities:
            return None
        try:
            return self._read_item(where, item, modality)
        except BadCellError as fault:
            return fault
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            return BadCellError(where, f"item {shortened(item.get('id'))} is not as STAC has it: "
                                f"{error}")  # fmt: skip

    def _read_item(self, where: str, item: dict[str, Any], modality: str) -> Scene:
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
            layer = Layer(self._locate(where, asset.get("href")), grid=_grid(asset, properties))
            if is_scl or band is None:
                scl = scl or layer
                continue
            fits = layer.grid is not None and layer.grid.gsd == native[band]
            if band not in chosen or (fits and not chosen[band][0]):
                chosen[band] = fits, layer, asset
        if not set(chosen) - {CIRRUS}:
            raise BadCellError(name, f"it has no asset that is a GeoTIFF of a band of {modality}")
        layers = {band: layer for band, (_, layer, _) in chosen.items()}
        grid = self._finest(layers, native)
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
            footprint=_footprint(item, name),
            layers=layers,
            cloud_cover=float(clouds) if isinstance(clouds, int | float) else None,
            tile=str(tile).removeprefix("MGRS-") or str(item["id"]),
            grid=grid,
            claim=claim,
            quantification=1.0 / scale,
            add=add,
            mask=(scl, "scl") if scl is not None and modality == "s2_l2a" else None,
            age=(int(baseline) if baseline.isdigit() else 0, str(properties.get("updated") or "")),
        )

    def _finest(self, layers: dict[str, Layer], native: Mapping[str, int]) -> Grid | None:
        """The grid of a band of 10 m; of an item that does not state it its header is read."""
        band = min(layers, key=lambda name: native[name])
        if layers[band].grid is None:
            layers[band] = Layer(layers[band].uri, grid=read_header(layers[band])[0])
        return layers[band].grid


def _read(uri: str) -> dict[str, Any] | BadCellError:
    try:
        return read_json(uri)
    except BadCellError as fault:
        return fault


def _modality(item: Mapping[str, Any]) -> str | None:
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
        found = [band for name in names if name and (band := canonical(str(name), modality))]
        if found:
            return found[0]
    elif isinstance(stated, list) and len(stated) > 1:
        return None
    return canonical(key, modality)


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
    plain = np.isfinite((a, c, e, f)).all() and a > 0 > e and not b and not d
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


def _footprint(item: Mapping[str, Any], name: str) -> tuple[tuple[float, float], ...]:
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

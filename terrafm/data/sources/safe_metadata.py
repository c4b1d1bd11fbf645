"""What the XML of a Sentinel-2 product says: tiles, offsets, clouds, baseline, footprint."""

import re
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from pyproj import Transformer

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.bands import CIRRUS, L1C_ORDER
from terrafm.data.sources.offsets import claimed_offset
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.product_files import ProductFiles
from terrafm.data.sources.scenes.scene import Layer, Scene
from terrafm.modalities import MODALITIES
from terrafm.storage.xml_text import BadXmlError, Element, parse_xml

_NEW = re.compile(r"(S2[A-D])_MSIL(1C|2A)_(\d{8}T\d{6})_N(\d{4})_R(\d{3})_T(\w{5})_(\d{8}T\d{6})$")
_OLD = re.compile(r"(S2[A-D])_(?:OPER|USER)_PRD_MSIL(1C|2A)_.*_V(\d{8}T\d{6})(?:_\d{8}T\d{6})?$")
_LEVELS = {"1C": "s2_l1c", "2A": "s2_l2a"}
_BAND = re.compile(r"_(B\d{2}|B8A|SCL)(?:_(10|20|60)m)?\.jp2$")
_FOLDER = re.compile(r"R(10|20|60)m$")
_TILE = re.compile(r"_T?(\d{2}[C-X][A-Z]{2})(?=_|$|\.)")
_EPSG = re.compile(r"EPSG:32[67](?:0[1-9]|[1-5]\d|60)$")
_PLACED = "Tile_Geocoding"
# Where the tile lies stands in the first kilobytes; angles take hundreds more.
_HEAD = 64 << 10
_LARGEST = 20_000
# Published without the offset, and by anyone's own processor: older than all others.
_TEST_BASELINE = 9999
_STEPS = 10_000.0
_METRES_PER_DEGREE, _SOUTHERN_ORIGIN, _NEAR_DEGREES = 111_000, 10_000_000, 3
_USUAL_ADD = (0.0, -1000.0)


@dataclass(frozen=True)
class SafeName:
    """What the name of a product, or of its metadata, says.

    Attributes:
        product_id: the name.
        modality: "s2_l1c" or "s2_l2a".
        time: of sensing, or None.
        metadata: name of the file of metadata, or None where it is missing.
    """

    product_id: str
    modality: str
    time: datetime | None
    metadata: str | None


@dataclass
class ProductScenes:
    """Tiles of a product, and what cannot be used of it: (name, modality, fault)."""

    scenes: list[Scene] = field(default_factory=list)
    broken: list[tuple[str, str, BadCellError]] = field(default_factory=list)


@dataclass(frozen=True)
class _Product:
    # What all tiles of a product share.
    files: ProductFiles
    name: SafeName
    time: str
    baseline: str
    quantification: float
    add: dict[str, float]
    claim: tuple[int, str] | None
    cloud_cover: float | None
    footprint: tuple[tuple[float, float], ...] | None


def parse_name(name: str, metadata: str | None) -> SafeName | None:
    """Reads the name of a product; by its metadata's where it has been renamed; None for others.

    Args:
        name: of the folder or zip, without a suffix.
        metadata: name of the file of metadata in it.
    """
    found = _NEW.match(name) or _OLD.match(name)
    if found:
        time = parse_time(_iso(found.group(3)))
        return SafeName(name, _LEVELS[found.group(2)], time, metadata)
    if metadata is not None and (level := re.search(r"L(1C|2A)", metadata)):
        return SafeName(name, _LEVELS[level.group(1)], None, metadata)
    return None


def scenes_of(files: ProductFiles, name: SafeName) -> ProductScenes:
    """The tiles of a product.

    What is missing or damaged is a fault that names it; bands that are missing are not.
    """
    result = ProductScenes()
    try:
        product = _read_product(files, name)
        granules = [granule for granule in files.names("GRANULE") if not granule.endswith(".xml")]
        if not granules:
            where = files.where("GRANULE")
            raise BadCellError(where, "no tile in it: a partial download?")
    except BadCellError as fault:
        result.broken.append((name.product_id, name.modality, fault))
        return result
    for granule in granules:
        try:
            result.scenes.append(_scene(product, f"GRANULE/{granule}"))
        except BadCellError as fault:
            label = name.product_id if len(granules) == 1 else f"{name.product_id} {granule}"
            result.broken.append((label, name.modality, fault))
    return result


def _read_product(files: ProductFiles, name: SafeName) -> _Product:
    if name.metadata is None:
        wanted = f"MTD_MSI{name.modality[3:].upper()}.xml"
        raise BadCellError(files.where(wanted), "file not found: a partial download?")
    where = files.where(name.metadata)
    root = _parse(files.read(name.metadata), where)
    key = "RADIO_ADD_OFFSET" if name.modality == "s2_l1c" else "BOA_ADD_OFFSET"
    quantification = root.first("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
    steps = _number(quantification, where, "QUANTIFICATION_VALUE", _STEPS)
    if not 1 <= steps <= 1e6:
        raise BadCellError(where, f"QUANTIFICATION_VALUE is {steps:g}")
    baseline = root.first("PROCESSING_BASELINE").replace(".", "")
    stated = {
        _band(entry.attributes.get("band_id", ""), where): _number(entry.text, where, key, 0.0)
        for entry in root.all(key)
    }
    values = set(stated.values())
    claim, add = None, {}
    if len(values) == 1 and values <= set(_USUAL_ADD) and steps == _STEPS:
        claim = claimed_offset({key: f"{next(iter(values)):g}"}, offset_tag=False)
    elif values:
        # Other numbers than any archive has: the metadata are the only ones who know.
        claim, add = (0, key), stated
    else:
        claim = claimed_offset({"PROCESSING_BASELINE": baseline}, offset_tag=False)
    if steps != _STEPS:
        offset = float(claim[0]) if claim and not add else 0.0
        add = add or dict.fromkeys(L1C_ORDER, -offset)
        claim = 0, claim[1] if claim else "QUANTIFICATION_VALUE"
    clouds = root.first("Cloud_Coverage_Assessment", "CLOUDY_PIXEL_PERCENTAGE")
    cloud_cover = _number(clouds, where, "Cloud_Coverage_Assessment", -1.0)
    time = root.first("DATATAKE_SENSING_START", "PRODUCT_START_TIME")
    moment = name.time or parse_time(time)
    return _Product(
        files=files,
        name=name,
        time=moment.isoformat() if moment else "",
        baseline=baseline,
        quantification=steps,
        add=add,
        claim=claim,
        cloud_cover=cloud_cover if 0 <= cloud_cover <= 100 else None,
        footprint=_outline(root),
    )


def _scene(product: _Product, granule: str) -> Scene:
    files, name = product.files, product.name
    inside = files.names(granule)
    metadata = next((n for n in inside if n.endswith(".xml") and "MTD" in n), None)
    if metadata is None:
        where = files.where(f"{granule}/MTD_TL.xml")
        raise BadCellError(where, "file not found: a partial download?")
    where = files.where(f"{granule}/{metadata}")
    head = files.read(f"{granule}/{metadata}", _HEAD)
    grids = _grids(_parse(head, where, until=_PLACED), where)
    layers, mask = _layers(product, granule, inside, grids)
    if not set(layers) - {CIRRUS}:
        raise BadCellError(files.where(f"{granule}/IMG_DATA"), "no band in it: a partial download?")
    tile = _TILE.search(granule) or _TILE.search(name.product_id)
    several = len(files.names("GRANULE")) > 1
    generated = name.product_id.rpartition("_")[2]
    return Scene(
        modality=name.modality,
        product_id=name.product_id,
        source=files.where(granule) if several else files.uri,
        time=product.time,
        footprint=ground_of(product.footprint, grids[10]) if not several else _corners(grids[10]),
        layers=layers,
        cloud_cover=product.cloud_cover,
        tile=tile.group(1) if tile else granule.rpartition("/")[2],
        grid=grids[10],
        claim=product.claim,
        quantification=product.quantification,
        add=product.add,
        mask=mask,
        age=(_age(product.baseline or _baseline_of(name.product_id)), generated),
    )


def _parse(content: bytes, where: str, until: str | None = None) -> Element:
    try:
        return parse_xml(content, until)
    except BadXmlError as error:
        raise BadCellError(where, str(error)) from None


def _grids(root: Element, where: str) -> dict[int, Grid]:
    """The grids of 10, 20 and 60 m."""
    crs = root.first("HORIZONTAL_CS_CODE")
    if not _EPSG.match(crs):
        raise BadCellError(where, f"HORIZONTAL_CS_CODE is {shortened(crs)}, not a zone of UTM")
    sizes: dict[int, tuple[int, int]] = {}
    corners: dict[int, tuple[float, float]] = {}
    for element in root.all("Size"):
        gsd = int(_number(element.attributes.get("resolution", ""), where, "resolution", 0))
        rows, columns = (
            int(_number(element.first(key), where, key, 0)) for key in ("NROWS", "NCOLS")
        )
        sizes[gsd] = rows, columns
    for element in root.all("Geoposition"):
        gsd = int(_number(element.attributes.get("resolution", ""), where, "resolution", 0))
        left, top = (_number(element.first(key), where, key, 0.0) for key in ("ULX", "ULY"))
        corners[gsd] = left, top
    grids = {}
    for gsd in (10, 20, 60):
        if gsd not in sizes or gsd not in corners:
            raise BadCellError(where, f"no Size and Geoposition of {gsd} m")
        if not all(0 < side <= _LARGEST for side in sizes[gsd]):
            raise BadCellError(where, f"a tile of {sizes[gsd][0]} x {sizes[gsd][1]} px")
        left, top = corners[gsd]
        if not (abs(left) < 1e7 and abs(top) < 2e7):
            raise BadCellError(where, f"a corner at {left:g}, {top:g}")
        grids[gsd] = Grid(crs, (gsd, 0.0, left, 0.0, -gsd, top), sizes[gsd], gsd)
    return grids


def _layers(
    product: _Product, granule: str, inside: list[str], grids: dict[int, Grid]
) -> tuple[dict[str, Layer], tuple[Layer, str] | None]:
    """The bands at their native resolutions, and the mask."""
    files, modality = product.files, product.name.modality
    native = dict(zip(MODALITIES[modality].bands, MODALITIES[modality].gsd, strict=True))
    native |= {CIRRUS: 60, "SCL": 20}
    images = f"{granule}/IMG_DATA"
    layers: dict[str, Layer] = {}
    for folder in [images, *(f"{images}/{n}" for n in files.names(images) if _FOLDER.match(n))]:
        of_folder = _FOLDER.search(folder)
        for name in files.names(folder):
            found = _BAND.search(name)
            if not found or found.group(1) not in native:
                continue
            band = found.group(1)
            stated = found.group(2) or (of_folder.group(1) if of_folder else None)
            if stated is None or int(stated) == native[band]:
                layers[band] = files.layer(f"{folder}/{name}", grids[native[band]])
    scl = layers.pop("SCL", None)
    if scl is not None:
        return layers, (scl, "scl")
    if "QI_DATA" in inside and modality == "s2_l1c":
        for name in files.names(f"{granule}/QI_DATA"):
            if name == "MSK_CLASSI_B00.jp2":
                return layers, (files.layer(f"{granule}/QI_DATA/{name}", grids[60]), "classi")
    return layers, None


def _outline(root: Element) -> tuple[tuple[float, float], ...] | None:
    """The footprint in degrees; None where the metadata have none that can be used."""
    words = root.first("EXT_POS_LIST").split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        return None
    if len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
        return None
    latitude, longitude = numbers[0::2], numbers[1::2]
    if (np.abs(latitude) > 90).any() or (np.abs(longitude) > 180).any():
        return None
    return tuple(zip(longitude.tolist(), latitude.tolist(), strict=True))


def ground_of(
    footprint: tuple[tuple[float, float], ...] | None, grid: Grid
) -> tuple[tuple[float, float], ...]:
    """A footprint, but the tile's corners where there is none or it lies elsewhere."""
    if footprint is None:
        return _corners(grid)
    origin = _SOUTHERN_ORIGIN if grid.crs.startswith("EPSG:327") else 0
    latitude = (grid.transform[5] - origin) / _METRES_PER_DEGREE
    middle = float(np.mean([corner[1] for corner in footprint]))
    return footprint if abs(latitude - middle) < _NEAR_DEGREES else _corners(grid)


def _corners(grid: Grid) -> tuple[tuple[float, float], ...]:
    a, _, c, _, e, f = grid.transform
    rows, columns = grid.shape
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    x, y = [c, c + a * columns, c + a * columns, c], [f, f, f + e * rows, f + e * rows]
    longitude, latitude = to_degrees.transform(x, y)
    return tuple(zip(map(float, longitude), map(float, latitude), strict=True))


def _band(number: str, where: str) -> str:
    """The band of a band_id: they count from 0 in the usual order, with B10."""
    if not number.isdigit() or int(number) >= len(L1C_ORDER):
        raise BadCellError(where, f"band_id is {shortened(number)}")
    return L1C_ORDER[int(number)]


def _number(text: str, where: str, key: str, otherwise: float) -> float:
    if not text:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise BadCellError(where, f"{key} is {shortened(text)}, not a number")
    return value


def _baseline_of(product_id: str) -> str:
    found = re.search(r"_N(\d{4})_", product_id)
    return found.group(1) if found else ""


def _age(baseline: str) -> int:
    digits = int(baseline) if baseline.isdigit() else 0
    return 0 if digits == _TEST_BASELINE else digits


def _iso(compact: str) -> str:
    date, _, time = compact.partition("T")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}+00:00"

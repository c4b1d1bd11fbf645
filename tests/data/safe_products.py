"""SAFE products and radar scenes for tests, written as their publishers write them.

Pixels are lossless JPEG 2000; names, folders and metadata are those of real products, cut down to
what anything reads.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from pyproj import Transformer

from terrafm.modalities import MODALITIES

BANDS = MODALITIES["s2_l2a"].bands
GSD = dict(zip(BANDS, MODALITIES["s2_l2a"].gsd, strict=True)) | {"B10": 60}
ORDER = (*BANDS[:10], "B10", *BANDS[10:])
# A corner that tiles of UTM have: a multiple of 60 m.
CORNER = (600000, 5000040)
ZONE = 33


@dataclass
class Product:
    """A product to write; `pixels` are band -> (H, W) at the band's own resolution."""

    pixels: dict
    level: str = "L2A"
    tile: str = "33TWL"
    time: str = "20220706T085611"
    baseline: str = "0400"
    generated: str = "20220706T153419"
    satellite: str = "S2A"
    epsg: int = 32633
    corner: tuple = CORNER
    cloud: float = 5.0
    offset: int | None = None
    quantification: int = 10000
    scl: object = None
    classi: object = None
    footprint: list | None = None
    flat: bool | None = None
    layout: str = "new"
    profile: dict = field(default_factory=dict)

    @property
    def name(self):
        if self.layout == "old":
            return (
                f"{self.satellite}_OPER_PRD_MSI{self.level}_PDMC_{self.generated}_R007_"
                f"V{self.time}_{self.time}"
            )
        return (
            f"{self.satellite}_MSI{self.level}_{self.time}_N{self.baseline}_R007_T{self.tile}_"
            f"{self.generated}"
        )

    @property
    def shape(self):
        band, pixels = next(iter(self.pixels.items()))
        return tuple(side * GSD[band] // 10 for side in pixels.shape)


def ground(seed=0, size=264, low=1300, high=4000, bands=ORDER):
    """Band -> noise at its own resolution, which has the offset of 1000; B10 is dark."""
    rng = np.random.default_rng(seed)
    pixels = {}
    for band in bands:
        side = size * 10 // GSD[band]
        top = 1040 if band == "B10" else high
        bottom = 1005 if band == "B10" else low
        pixels[band] = rng.integers(bottom, top, (side, side)).astype(np.uint16)
    return pixels


def write_safe(folder, product):
    """Writes a product as a folder; returns it."""
    root = Path(folder) / f"{product.name}.SAFE"
    old = product.layout == "old"
    granule = root / "GRANULE" / _granule(product)
    images = granule / "IMG_DATA"
    images.mkdir(parents=True)
    level = product.level[1:]
    main = f"MTD_MSI{product.level}.xml"
    tile = "MTD_TL.xml"
    if old:
        main = f"{product.satellite}_OPER_MTD_SAF{product.level}_PDMC_{product.generated}.xml"
        tile = f"{_granule(product).replace('_MSI_', '_MTD_').rpartition('_N')[0]}.xml"
    (root / main).write_text(_metadata(product, level))
    (granule / tile).write_text(_tile_metadata(product))
    flat = product.level == "L1C" if product.flat is None else product.flat
    for band, pixels in product.pixels.items():
        if band == "B10" and product.level == "L2A":
            continue
        gsd = GSD[band]
        into = images if flat else images / f"R{gsd}m"
        into.mkdir(exist_ok=True)
        stem = f"T{product.tile}_{product.time}_{band}"
        if old:
            stem = f"{_granule(product).rpartition('_N')[0]}_{band}"
        name = f"{stem}.jp2" if product.level == "L1C" else f"{stem}_{gsd}m.jp2"
        write_jp2(into / name, pixels, gsd, product)
        if not flat and gsd == 10:
            # As real products have it: every band at all coarser resolutions as well.
            for coarser in (20, 60):
                (images / f"R{coarser}m").mkdir(exist_ok=True)
                times = coarser // gsd
                write_jp2(
                    images / f"R{coarser}m" / f"{stem}_{coarser}m.jp2",
                    pixels[::times, ::times] // 2,
                    coarser,
                    product,
                )
    if product.scl is not None:
        into = images if flat else images / "R20m"
        into.mkdir(exist_ok=True)
        write_jp2(into / f"T{product.tile}_{product.time}_SCL_20m.jp2", product.scl, 20, product)
    (granule / "QI_DATA").mkdir()
    if product.classi is not None:
        write_jp2(granule / "QI_DATA/MSK_CLASSI_B00.jp2", product.classi, 60, product)
    return root


def write_zip(folder, product, method=zipfile.ZIP_STORED):
    """Writes a product as a zip; returns it."""
    path = Path(folder) / f"{product.name}.zip"
    scratch = Path(folder) / ".scratch"
    root = write_safe(scratch, product)
    with zipfile.ZipFile(path, "w", method) as packed:
        for file in sorted(root.rglob("*")):
            packed.write(file, file.relative_to(scratch))
    for file in sorted(scratch.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    scratch.rmdir()
    return path


def write_jp2(path, pixels, gsd, product):
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
    options = {"driver": "JP2OpenJPEG", **lossless, **product.profile}
    _write(path, pixels, product.epsg, product.corner, gsd, **options).close()


def write_radar(path, pixels, epsg=32633, corner=CORNER, gsd=10, nodata=None, names=None, **tags):
    """(C, H, W) or (H, W) floats as a GeoTIFF."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with _write(path, pixels, epsg, corner, gsd, driver="GTiff", nodata=nodata, **blocks) as file:
        for number, name in enumerate(names or (), start=1):
            file.set_band_description(number, name)
    return path


def _write(path, pixels, epsg, corner, gsd, **options):
    """The open file, with its pixels."""
    stack = pixels if pixels.ndim == 3 else pixels[None]
    file = rasterio.open(
        path,
        "w",
        dtype=stack.dtype.name,
        count=len(stack),
        height=stack.shape[1],
        width=stack.shape[2],
        crs=f"EPSG:{epsg}",
        transform=rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
        **options,
    )
    file.write(stack)
    return file


def _granule(product):
    if product.layout == "old":
        return (
            f"{product.satellite}_OPER_MSI_{product.level}_TL_EPA__{product.generated}_A004994_"
            f"T{product.tile}_N{product.baseline[:2]}.{product.baseline[2:]}"
        )
    return f"{product.level}_T{product.tile}_A036754_{product.time}"


def _metadata(product, level):
    baseline = f"{product.baseline[:2]}.{product.baseline[2:]}"
    key, tag = ("RADIO", "QUANTIFICATION_VALUE")
    if level == "2A":
        key, tag = ("BOA", "BOA_QUANTIFICATION_VALUE")
    offset = product.offset
    if offset is None and int(product.baseline) >= 400:
        offset = -1000
    offsets = ""
    if offset is not None:
        entries = "".join(
            f'<{key}_ADD_OFFSET band_id="{i}">{offset}</{key}_ADD_OFFSET>' for i in range(13)
        )
        offsets = f"<Offset_List>{entries}</Offset_List>"
    corners = product.footprint or footprint_of(product)
    positions = " ".join(f"{lat} {lon}" for lon, lat in [*corners, corners[0]])
    date = product.time
    iso = f"{date[:4]}-{date[4:6]}-{date[6:11]}:{date[11:13]}:{date[13:]}.024Z"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{iso}</PRODUCT_START_TIME>
      <PRODUCT_URI>{product.name}.SAFE</PRODUCT_URI>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Datatake><DATATAKE_SENSING_START>{iso}</DATATAKE_SENSING_START></Datatake>
    </Product_Info>
    <Product_Image_Characteristics>
      <{tag} unit="none">{product.quantification}</{tag}>
      {offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Geometric_Info><Product_Footprint><Product_Footprint><Global_Footprint>
    <EXT_POS_LIST>{positions}</EXT_POS_LIST>
  </Global_Footprint></Product_Footprint></Product_Footprint></n1:Geometric_Info>
  <n1:Quality_Indicators_Info>
    <Cloud_Coverage_Assessment>{product.cloud}</Cloud_Coverage_Assessment>
  </n1:Quality_Indicators_Info>
</n1:Level-{level}_User_Product>
"""


def footprint_of(product):
    rows, columns = product.shape
    left, top = product.corner
    right, bottom = left + 10 * columns, top - 10 * rows
    to_degrees = Transformer.from_crs(product.epsg, 4326, always_xy=True)
    x, y = [left, right, right, left], [top, top, bottom, bottom]
    return list(zip(*to_degrees.transform(x, y), strict=True))


def _tile_metadata(product):
    rows, columns = product.shape
    left, top = product.corner
    sizes = "".join(
        f'<Size resolution="{g}"><NROWS>{rows * 10 // g}</NROWS><NCOLS>{columns * 10 // g}</NCOLS>'
        f"</Size>"
        for g in (10, 20, 60)
    )
    places = "".join(
        f'<Geoposition resolution="{g}"><ULX>{left}</ULX><ULY>{top}</ULY><XDIM>{g}</XDIM>'
        f"<YDIM>-{g}</YDIM></Geoposition>"
        for g in (10, 20, 60)
    )
    angles = "".join(f"<VALUES>{'71.2 ' * 23}</VALUES>" for _ in range(400))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{product.level[1:]}_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2.xsd">
  <n1:General_Info><TILE_ID>{_granule(product)}</TILE_ID></n1:General_Info>
  <n1:Geometric_Info>
    <Tile_Geocoding metadataLevel="Brief">
      <HORIZONTAL_CS_NAME>WGS84 / UTM</HORIZONTAL_CS_NAME>
      <HORIZONTAL_CS_CODE>EPSG:{product.epsg}</HORIZONTAL_CS_CODE>
      {sizes}{places}
    </Tile_Geocoding>
    <Tile_Angles>{angles}</Tile_Angles>
  </n1:Geometric_Info>
</n1:Level-{product.level[1:]}_Tile_ID>
"""

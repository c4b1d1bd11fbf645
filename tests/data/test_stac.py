"""STAC items of one-band GeoTIFFs give the pixels of their assets, wherever they lie."""

import json

import numpy as np
import pytest
import rasterio
from range_server import serving
from safe_products import BANDS, CORNER, GSD, Product, footprint_of, ground

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.offsets import decide
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.stac import StacItems
from terrafm.errors import UsageError

ALL = ("s1", "s2_l1c", "s2_l2a")
EARTH_SEARCH = dict(zip(BANDS, (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
), strict=True))  # fmt: skip
NAMES = {
    "earth search": EARTH_SEARCH,
    "planetary computer": {band: band for band in BANDS},
    "cdse": {band: f"{band}_{GSD[band]}m" for band in BANDS},
    "by eo:bands": {band: f"asset{number}" for number, band in enumerate(BANDS)},
}
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def source(uri, modalities=("s2_l2a",), tile_size=132, **settings):
    return StacItems(str(uri), modalities, SceneRequest(tile_size=tile_size, **settings))


def write_tiff(path, pixels, gsd, epsg=32633, corner=CORNER):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype.name, count=1, height=pixels.shape[0],
        width=pixels.shape[1], crs=f"EPSG:{epsg}", tiled=True, blockxsize=128, blockysize=128,
        transform=rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]), compress="deflate",
    ) as file:  # fmt: skip
        file.write(pixels, 1)


def item(folder, product, names="earth search", href="{}", stated=True, offset=None, **properties):
    """Writes a product's bands beside each other, and gives the item of them."""
    keys = NAMES[names]
    assets = {
        "thumbnail": {"href": "thumbnail.jpg", "type": "image/jpeg"},
        "red-jp2": {"href": "s3://b/B04.jp2", "type": "image/jp2"},
        "visual": {"href": "TCI.tif", "type": COG, "eo:bands": [{"name": "red"}] * 3},
    }
    for band in BANDS:
        name = f"{product.name}/{keys[band]}.tif"
        gsd = GSD[band]
        write_tiff(folder / name, product.pixels[band], gsd, product.epsg, product.corner)
        asset = {"href": href.format(name), "type": COG}
        if stated:
            asset["proj:shape"] = list(product.pixels[band].shape)
            asset["proj:transform"] = [gsd, 0, product.corner[0], 0, -gsd, product.corner[1]]
        if names == "by eo:bands":
            asset["eo:bands"] = [{"name": band, "common_name": EARTH_SEARCH[band]}]
        if offset is not None:
            asset["raster:bands"] = [{"scale": 0.0001, "offset": offset, "nodata": 0}]
        assets[keys[band]] = asset
    date = product.time
    ring = [*footprint_of(product), footprint_of(product)[0]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": product.name, "bbox": [16, 45, 17, 46],
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"{date[:4]}-{date[4:6]}-{date[6:11]}:{date[11:13]}:{date[13:]}.024Z",
            "platform": "sentinel-2a", "eo:cloud_cover": product.cloud, "proj:epsg": product.epsg,
            "grid:code": f"MGRS-{product.tile}", **properties,
        },
        "assets": assets, "links": [],
    }  # fmt: skip


def collection(path, *items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return path


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("stated", [True, False])
def test_assets_are_bands_by_the_names_of_each_catalogue(names, stated, tmp_path):
    product = Product(ground(1, bands=BANDS))
    opened = source(collection(tmp_path / "items.json", item(tmp_path, product, names,
                                                             stated=stated)))  # fmt: skip
    (ref,) = opened.cells()
    cell = opened.read(ref)
    read = cell.products["s2_l2a"]
    assert set(read.bands) == set(BANDS)
    for band in BANDS:
        np.testing.assert_array_equal(read.bands[band], product.pixels[band])
    assert (ref.cell_id, read.cloud_cover) == ("33TWL_00_00_20220706T085611", 5.0)
    assert read.source.endswith(f"items.json item {product.name}")


def test_a_static_catalogue_is_followed_and_a_dead_item_is_one_row(tmp_path):
    days = ("20220706T085611", "20220716T085611")
    links = [{"rel": "self", "href": "https://example.org/catalog.json"}]
    for number, time in enumerate(days):
        product = Product(ground(number, bands=BANDS), time=time)
        entry = item(tmp_path / "items", product)
        (tmp_path / "items" / f"{number}.json").write_text(json.dumps(entry))
        links.append({"rel": "item", "href": f"./{number}.json"})
    links.append({"rel": "item", "href": "./gone.json"})
    links.append({"rel": "item", "href": "../../elsewhere.json"})
    (tmp_path / "items/collection.json").write_text(
        json.dumps({"type": "Collection", "id": "a", "links": links})
    )
    root = [{"rel": "child", "href": "items/collection.json"}]
    (tmp_path / "catalog.json").write_text(
        json.dumps({"type": "Catalog", "id": "root", "links": root})
    )
    opened = source(tmp_path / "catalog.json", dates_per_place=5)
    refs = opened.cells()
    assert [ref.cell_id[-15:] for ref in refs if ref.modalities] == list(days)
    faults = sorted(ref.faults[0][1].why for ref in refs if ref.faults)
    assert "../../elsewhere.json leads out of" in faults[0]
    assert "file not found" in faults[1]
    read = opened.read(refs[1]).products["s2_l2a"].bands["B02"]
    np.testing.assert_array_equal(read, ground(1, bands=BANDS)["B02"])


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("/etc/{}", "leads out of"),
        ("file:///etc/{}", "leads out of"),
        ("../{}", "leads out of"),
        ("http://127.0.0.1:9/{}", "neither public nor beside"),
        ("reference://{}", "neither public nor beside"),
        ("zip::{}", "href is"),
    ],
)
def test_an_asset_leads_nowhere_but_below_the_catalogue_or_to_the_public(href, why, tmp_path):
    entry = item(tmp_path, Product(ground(1, bands=BANDS)), href=href)
    (ref,) = source(collection(tmp_path / "items.json", entry)).cells()
    assert why in ref.faults[0][1].why


@pytest.mark.parametrize(
    ("held", "properties", "offset", "expected", "reason"),
    [
        (1000, {}, -0.1, 1000, "raster:bands"),
        (0, {"earthsearch:boa_offset_applied": True}, -0.1, 0, "boa_offset_applied"),
        # What items are publicly known to say wrongly, and pixels know.
        (0, {"earthsearch:boa_offset_applied": False}, -0.1, 0, "a band below 1000, against"),
        (0, {"s2:processing_baseline": "05.10"}, None, 0, "a band below 1000, against"),
        (1000, {"s2:processing_baseline": "05.10"}, None, 1000, "baseline N0510"),
        (0, {"s2:processing_baseline": "02.14"}, 0, 0, "baseline N0214"),
    ],
)
def test_what_an_item_says_of_the_offset_is_a_claim(
    held, properties, offset, expected, reason, tmp_path
):
    pixels = ground(1, low=50 + held, high=3000 + held, bands=BANDS)
    entry = item(tmp_path, Product(pixels), offset=offset, **properties)
    entry["id"] = "S2A_33TWL_20220706_0_L2A"
    opened = source(collection(tmp_path / "items.json", entry))
    product = opened.read(opened.cells()[0]).products["s2_l2a"]
    decision = decide({"s2_l2a": product})["s2_l2a"]
    assert (decision.offset, decision.unit) == (expected, "DN")
    assert reason in decision.reason


def test_radar_of_planetary_computer(tmp_path):
    product = Product(ground(1, bands=BANDS))
    power = np.random.default_rng(1).gamma(2, 0.05, (264, 264)).astype(np.float32)
    for band in ("vv", "vh"):
        write_tiff(tmp_path / f"{band}.tif", power, 10)
    radar = item(tmp_path, product)
    radar |= {
        "id": "S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_053FDE_rtc",
        "collection": "sentinel-1-rtc",
        "assets": {b: {"href": f"{b}.tif", "type": COG} for b in ("vv", "vh")},
        "properties": {"datetime": "2022-07-05T16:50:12Z", "platform": "SENTINEL-1A"},
    }
    opened = source(collection(tmp_path / "items.json", item(tmp_path, product), radar), ALL)
    (ref,) = opened.cells()
    cell = opened.read(ref)
    np.testing.assert_array_equal(cell.products["s1"].bands["VH"], power)
    assert cell.products["s1"].time == "2022-07-05T16:50:12+00:00"


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as server:
        yield server.address, server.sent


def test_over_http_only_the_blocks_of_a_cell_travel(served, tmp_path):
    uri, sent = served
    product = Product(ground(1, size=1056, bands=BANDS))
    collection(tmp_path / "items.json", item(tmp_path, product))
    opened = source(f"{uri}/items.json", tile_size=132, grid="utm", pixels=132)
    refs = opened.cells()
    assert {path for path, _ in sent} == {"/items.json"}
    inner = next(r for r in refs if abs(r.location.cell.left - CORNER[0] - 5280) < 1320
                 and abs(r.location.cell.top - CORNER[1] + 5280) < 1320)  # fmt: skip
    sent.clear()
    cell = opened.read(inner)
    left, top = (
        (int(cell.transform[2]) - CORNER[0]) // 10,
        (CORNER[1] - int(cell.transform[5])) // 10,
    )
    expected = product.pixels["B02"][top : top + 132, left : left + 132]
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B02"], expected)
    whole = sum(path.stat().st_size for path in tmp_path.rglob("*.tif"))
    assert sum(size for _, size in sent) < 0.35 * whole


def test_a_store_of_items_becomes_the_tiles_of_its_assets(tmp_path, worldcover_tile, refused):
    product = Product(ground(3, bands=BANDS))
    uri = collection(tmp_path / "in/items.json", item(tmp_path / "in", product, offset=-0.1))
    cover = worldcover_tile("N45E015")
    ingest(
        "stac", str(uri), str(tmp_path / "out"), tile_size=132, worldcover=str(cover),
        config=IngestConfig(workers=0, ocean_drop=0.0),
    )  # fmt: skip
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == 4
    stored = dataset.read_tile(0)["s2_l2a_20m"]
    np.testing.assert_array_equal(stored[0], product.pixels["B05"][:66, :66] - 1000)
    (tmp_path / "no.json").write_text('{"type": "Topology"}')
    command = ("ingest", "--source", "stac", "--output", tmp_path / "no", "--input")
    assert "is no STAC" in refused(*command, tmp_path / "no.json")
    assert "does not exist" in refused(*command, tmp_path / "nothing.json")
    (tmp_path / "cut.json").write_text('{"type": "Feat')
    assert "metadata cannot be read" in refused(*command, tmp_path / "cut.json")


def test_a_thousand_items_are_listed_without_opening_one(tmp_path, monkeypatch):
    entry = item(tmp_path, Product(ground(1, bands=BANDS)))
    items = []
    for number in range(1000):
        day = f"20{10 + number // 300:02d}-{1 + number // 25 % 12:02d}-{1 + number % 25:02d}"
        properties = {**entry["properties"], "datetime": f"{day}T08:56:11Z"}
        items.append({**entry, "id": f"item{number}_L2A", "properties": properties})
    items[7]["geometry"] = None
    items[8]["assets"] = "none"
    monkeypatch.setattr("terrafm.data.rasters.opening.rasterio.open", None)
    refs = source(collection(tmp_path / "items.json", *items), dates_per_place=1000).cells()
    assert sum(bool(ref.modalities) for ref in refs) == 998
    assert sum(bool(ref.faults) for ref in refs) == 2


def test_a_file_that_is_no_stac_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no scene"):
        source(collection(tmp_path / "items.json")).cells()

"""A STAC API is searched: paging, filters, faults, signatures; and stac-geoparquet."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from safe_products import BANDS, CORNER, Product, ground
from shapely.geometry import shape
from stac_server import stac_api
from test_stac import collection, item, source

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.scenes.request import SceneWords
from terrafm.errors import StoreFailedError, StoreRefusedError, UsageError
from terrafm.storage import faults

BBOX = (16.1, 45.05, 16.35, 45.2)


@pytest.fixture
def archive(tmp_path):
    """A folder of one product's bands, and its item with relative addresses."""
    product = Product(ground(1, bands=BANDS))
    entry = item(
        tmp_path / "files", product, href="/files/{}", **{"s2:processing_baseline": "02.14"}
    )
    return tmp_path / "files", product, entry


def many(entry, number, tiles=1):
    """Items of the same bands at other times, on tiles beside each other."""
    found = []
    for number_of_all in range(number):
        one, tile = divmod(number_of_all, tiles)
        day = f"20{10 + one // 336:02d}-{1 + one // 28 % 12:02d}-{1 + one % 28:02d}"
        changed = {**entry["properties"], "datetime": f"{day}T08:56:11Z",
                   "grid:code": f"MGRS-{tile}"}  # fmt: skip
        assets = {key: moved(asset, 2640 * tile) for key, asset in entry["assets"].items()}
        found.append({**entry, "id": f"item{number_of_all}_L2A", "properties": changed,
                      "assets": assets, "geometry": moved_ring(entry, tile)})  # fmt: skip
    return found


def moved(asset, metres):
    if "proj:transform" not in asset:
        return asset
    a, b, c, d, e, f = asset["proj:transform"]
    return {**asset, "proj:transform": [a, b, c + metres, d, e, f]}


def moved_ring(entry, tile):
    """About where `moved` pixels lie; a footprint is wider than what is cut of it."""
    ring = entry["geometry"]["coordinates"][0]
    return {"type": "Polygon", "coordinates": [[(x + 0.0336 * tile, y) for x, y in ring]]}


def opened(server, tail="#sentinel-2-l2a", words=None, **settings):
    return source(f"stac+{server.address}{tail}", **(words or {}), **settings)


def searches(server):
    return [asked for method, path, asked in server.asked if "limit" in asked]


@pytest.mark.parametrize("methods", [("POST", "GET"), ("GET",), ()])
def test_a_search_is_followed_to_its_last_page(methods, archive):
    folder, product, entry = archive
    with stac_api(folder, many(entry, 250), methods=methods, most=50) as server:
        found = opened(server, dates_per_place=999)
        refs = found.cells()
        assert len({ref.cell_id for ref in refs}) == 250
        assert found.layout().notes["scenes"]["items"] == 250
        # 200 are asked for, refused, and then pages of 50.
        assert len([a for a in searches(server) if int(a["limit"]) == 50]) == 5
        expected = "POST" if "POST" in methods else "GET"
        assert {m for m, _, asked in server.asked if "limit" in asked} == {expected}
        cell = found.read(refs[7])
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B08"], product.pixels["B08"])
    assert cell.products["s2_l2a"].source.startswith(
        f"{server.address}/collections/sentinel-2-l2a/items/item"
    )


def test_area_time_and_collection_are_asked_of_the_server(archive):
    folder, _, entry = archive
    request = SceneWords(bbox="16,45,17,46", time="2012-03-01/2012-04-15")
    from terrafm.data.sources.scenes.request import SceneRequest
    from terrafm.data.sources.stac import StacItems

    request = SceneRequest.parse(request, 132, IngestConfig(dates_per_place=999))
    with stac_api(folder, many(entry, 900)) as server:
        found = StacItems(f"stac+{server.address}#sentinel-2-l2a", ("s2_l2a",), request)
        refs = found.cells()
        assert len(refs) == 28 + 15
        (asked,) = [a for a in searches(server) if a["limit"] != 200]
        assert asked["bbox"] == [16, 45, 17, 46]
        assert asked["datetime"] == "2012-03-01T00:00:00Z/2012-04-16T00:00:00Z"
        assert asked["collections"] == ["sentinel-2-l2a"]


def test_an_area_across_the_antimeridian_is_asked_for_in_two_boxes(archive):
    folder, _, entry = archive
    from terrafm.data.sources.scenes.request import SceneRequest
    from terrafm.data.sources.stac_api import StacApi

    request = SceneRequest.parse(SceneWords(bbox="179,-10,-179,10"), 132)
    with stac_api(folder, [entry], most=999) as server:
        assert list(StacApi(f"stac+{server.address}#sentinel-2-l2a").pages(request)) == [[], []]
        boxes = sorted(asked["bbox"] for asked in searches(server))
    assert boxes == [[-180, -10, -179, 10], [179, -10, 180, 10]]


def test_ten_thousand_items_are_listed_fast(archive, monkeypatch):
    folder, _, entry = archive
    items = many(entry, 10_000, tiles=20)
    items[5000]["assets"] = {"B02": "dead"}
    items[6000]["geometry"] = None
    monkeypatch.setattr("terrafm.data.rasters.opening.rasterio.open", None)
    with stac_api(folder, items, most=1000) as server:
        found = opened(server, dates_per_place=10)
        began = time.process_time()
        refs = found.cells()
        seconds = time.process_time() - began
    assert sum(bool(ref.modalities) for ref in refs) == 200
    assert sorted(ref.cell_id for ref in refs if ref.faults) == [
        "'item5000_L2A'", "'item6000_L2A'",
    ]  # fmt: skip
    # The server's own work is in it, in the same process.
    assert seconds < 40


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(archive):
    folder, _, entry = archive
    with stac_api(folder, [entry]) as server:
        server.faults = [(429, {"Retry-After": "1"}), (503, {}), (500, {}), (502, {})]
        began = time.monotonic()
        assert len(opened(server).cells()) == 1
        assert time.monotonic() - began >= 1


def test_a_server_that_fails_for_too_long_is_one_line(archive, monkeypatch):
    folder, _, entry = archive
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.5)
    with stac_api(folder, [entry]) as server:
        server.faults = [(500, {})] * 99
        with pytest.raises(StoreFailedError, match=r"500 Server Error.*tried again") as caught:
            opened(server).cells()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ("#other", "has no collection other; it has: sentinel-2-l2a"),
        ("", "name the collection: .*#COLLECTION'; it has: sentinel-2-l2a"),
        ("/elsewhere#a", "no STAC API answers there"),
        ("/collections#a", "is no STAC API: its first page links to nothing"),
    ],
)
def test_what_is_no_collection_of_an_api_is_one_line(tail, why, archive):
    folder, _, entry = archive
    with stac_api(folder, [entry]) as server, pytest.raises(UsageError, match=why):
        opened(server, tail).cells()


def test_a_password_and_a_key_are_sent_and_shown_nowhere(archive, tmp_path, worldcover_tile):
    folder, _, entry = archive
    with stac_api(folder, [entry], password="Basic YW5uYTpzZWNyZXQ=") as server:
        address = server.address.replace("://", "://anna:secret@")
        with pytest.raises(StoreRefusedError, match="401"):
            source(f"stac+{server.address}#sentinel-2-l2a").cells()
        server.asked.clear()
        entry["assets"] |= {"dead": {"href": "/files/none.tif", "type": "image/tiff",
                                     "eo:bands": [{"name": "B02"}]}}  # fmt: skip
        ingest(
            "stac", f"stac+{address}?api_key=hidden#sentinel-2-l2a", str(tmp_path / "out"),
            tile_size=132, worldcover=str(worldcover_tile("N45E015")),
            config=IngestConfig(workers=0, ocean_drop=0.0),
        )  # fmt: skip
        assert {asked.get("api_key") for m, _, asked in server.asked if m == "GET"} == {"hidden"}
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content, path
        assert b"hidden" not in content, path


def test_what_a_person_sees_of_a_search_has_no_password(archive, tmp_path, refused):
    folder, _, entry = archive
    with stac_api(folder, [entry], password="Basic YW5uYTpzZWNyZXQ=") as server:
        address = server.address.replace("://", "://anna:secret@")
        command = ("ingest", "--source", "stac", "--output", tmp_path / "no", "--input")
        cases = {
            "#other": "has no collection other; it has: sentinel-2-l2a",
            "": "name the collection",
            "#sentinel-2-l2a": "in the area and time that are asked for",
        }
        for tail, why in cases.items():
            said = refused(*command, f"stac+{address}{tail}", "--bbox", "1,2,3,4")
            assert why in said
            assert "secret" not in said


def test_a_tile_says_which_item_and_files_it_is_of(archive, tmp_path, worldcover_tile):
    folder, product, entry = archive
    with stac_api(folder, [entry]) as server:
        ingest(
            "stac", f"stac+{server.address}#sentinel-2-l2a", str(tmp_path / "out"), tile_size=132,
            worldcover=str(worldcover_tile("N45E015")), scenes=SceneWords(bbox="16,45,17,46"),
            config=IngestConfig(workers=0, ocean_drop=0.0),
        )  # fmt: skip
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == 4
    stored = dataset.read_tile(0)["s2_l2a_20m"]
    np.testing.assert_array_equal(stored[0], product.pixels["B05"][:66, :66])
    origin = dataset.tile(0)["products"]["s2_l2a"]["origin"]
    assert origin["item"] == product.name
    assert origin["hrefs"]["B05"] == f"{server.home}/files/{product.name}/rededge1.tif"


def test_addresses_are_signed_by_the_interface_that_is_named(archive):
    folder, product, entry = archive
    with stac_api(folder, [entry], signed=True) as server:
        plain = opened(server)
        with pytest.raises(Exception, match=r"not a readable|file not found"):
            plain.read(plain.cells()[0])
        found = opened(server, sign=f"{server.home}/sas")
        (ref,) = found.cells()
        cell = found.read(ref)
        np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B8A"], product.pixels["B8A"])
        # One signature serves all files beside each other.
        assert server.signatures == 1


def test_a_signature_that_ends_is_renewed(archive, monkeypatch):
    folder, product, entry = archive
    now = time.time()
    with stac_api(folder, [entry], signed=True) as server:
        found = opened(server, sign=f"{server.home}/sas")
        (ref,) = found.cells()
        server.lifetime = None
        found.read(ref)
        found.read(ref)
        assert server.signatures == 1
        monkeypatch.setattr("time.time", lambda: now + 3600)
        cell = found.read(ref)
        assert server.signatures == 2
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B04"], product.pixels["B04"])


def table(path, items):
    """Writes items as stac-geoparquet has them."""
    keys = sorted({key for one in items for key in one["assets"]})
    rows = [
        {
            "type": "Feature", "id": one["id"], "collection": one["collection"],
            "geometry": shapely.to_wkb(shape(one["geometry"])) if one["geometry"] else None,
            "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, one["bbox"]),
                             strict=True)),
            "assets": {key: one["assets"].get(key) for key in keys},
            "links": [{"rel": "self", "href": "x"}],
            **one["properties"],
            "datetime": np.datetime64(one["properties"]["datetime"].removesuffix("Z"), "us").item(),
        }
        for one in items
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_stac_geoparquet_is_read_as_the_items_that_it_is_of(tmp_path):
    product = Product(ground(1, bands=BANDS), time="20220706T085611")
    entry = item(tmp_path, product, "by eo:bands", offset=-0.1)
    other = {**entry, "id": "other", "collection": "naip", "properties": {
        **entry["properties"], "platform": "plane", "proj:epsg": None}}  # fmt: skip
    broken = {**entry, "id": "broken", "geometry": None}
    path = table(tmp_path / "items.parquet", [entry, other, broken])
    found = source(path)
    refs = found.cells()
    plain = source(collection(tmp_path / "items.json", entry)).cells()
    assert [ref.cell_id for ref in refs if ref.modalities] == [ref.cell_id for ref in plain]
    assert [ref.cell_id for ref in refs if ref.faults] == ["'broken'"]
    cell = found.read(refs[0])
    for band in BANDS:
        read = cell.products["s2_l2a"].bands[band]
        np.testing.assert_array_equal(read, product.pixels[band])
    assert cell.products["s2_l2a"].claim == (1000, "raster:bands")
    assert cell.products["s2_l2a"].time == "2022-07-06T08:56:11.024000+00:00"
    assert int(cell.transform[2]) == CORNER[0]


def test_a_parquet_file_that_is_no_stac_is_one_line(tmp_path, refused):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1" * 9)
    command = ("ingest", "--source", "stac", "--output", tmp_path / "no", "--input")
    assert "is no stac-geoparquet: it has no column" in refused(*command, tmp_path / "a.parquet")
    assert "cannot read" in refused(*command, tmp_path / "b.parquet")
    assert "does not exist" in refused(*command, tmp_path / "c.parquet")
    assert "no address" in refused(*command, "stac+ftp://host/a#b")
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    said = refused("ingest", "--source", "safe", "--sign", "planetary-computer", "--output",
                   tmp_path / "no", "--input", tmp_path)  # fmt: skip
    assert "has no addresses to sign" in said


def test_a_dead_item_among_others_is_one_row(archive, tmp_path, worldcover_tile):
    """Its file is gone, which shows only when it is read; the others become tiles."""
    folder, _, entry = archive
    gone = {key: {**asset, "href": asset["href"].replace("/files/", "/files/gone/")}
            for key, asset in entry["assets"].items()}  # fmt: skip
    items = many(entry, 4)
    items[2] = {**items[2], "assets": gone}
    items[3]["geometry"] = "nowhere"
    with stac_api(folder, items) as server:
        report = ingest(
            "stac", f"stac+{server.address}#sentinel-2-l2a", str(tmp_path / "out"), tile_size=264,
            worldcover=str(worldcover_tile("N45E015")),
            config=IngestConfig(workers=0, ocean_drop=0.0, dates_per_place=9, max_bad_fraction=0.6),
        )  # fmt: skip
    assert report.tiles == 2
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert any("coastal.tif" in line and "file not found" in line for line in lines)
    assert any("item3_L2A" in line for line in lines)

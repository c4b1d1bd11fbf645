"""A STAC API of a stranger, and a table of its items: bounded, and no way to another server."""

import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from stac_server import stac_api

from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.scenes.signing import Signer
from terrafm.data.sources.stac import StacItems
from terrafm.data.sources.stac_api import StacApi
from terrafm.errors import StoreFailedError, StoreRefusedError, TerraFMError, UsageError
from terrafm.storage import web_json
from terrafm.storage.web_json import JsonServer

ITEM = {"type": "Feature", "id": "a", "collection": "c", "bbox": [0, 0, 1, 1], "properties": {}}


def items_of(server):
    return [one for page in StacApi(f"stac+{server.address}#c").pages(SceneRequest())
            for one in page]  # fmt: skip


def linking(server, href, features=(), **link):
    """A page whose `next` leads somewhere."""
    return {"features": list(features), "links": [{"rel": "next", "href": href, **link}]}


def endless(server, fresh):
    def page(number, _):
        found = [{**ITEM, "id": f"{number}-{one}"} for one in range(100 if fresh else 0)]
        return linking(server, f"{server.address}/search?collections=c&limit=1&token={number + 1}",
                       found)  # fmt: skip

    return page


def test_pages_without_end_are_left_at_the_limit_of_items(tmp_path, monkeypatch):
    monkeypatch.setattr("terrafm.data.sources.stac_api.STAC_ITEMS", 500)
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = endless(server, fresh=True)
        with pytest.raises(UsageError, match=r"more than 500 items .* narrow the search"):
            items_of(server)
        assert len(server.asked) < 12


def test_pages_of_nothing_without_end_are_left(tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = endless(server, fresh=False)
        with pytest.raises(StoreFailedError, match="do not come to an end"):
            items_of(server)
        assert len(server.asked) < 10


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_that_repeats_itself_is_told(method, tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = lambda *_: linking(
            server, f"{server.address}/search?collections=c&limit=1", [ITEM], method=method,
            body={"collections": ["c"], "limit": 1},
        )  # fmt: skip
        with pytest.raises(StoreFailedError, match="links back"):
            items_of(server)


def test_a_count_beyond_what_is_read_ends_it_at_the_first_page(tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = lambda _, page: {**page, "numberMatched": 10**9}
        with pytest.raises(UsageError, match="1,000,000,000 items of what is asked for"):
            items_of(server)


def test_a_page_of_any_length_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(web_json, "DOCUMENT_BYTES", 100_000)
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = lambda *_: b"[" + b" " * 20_000_000
        tracemalloc.start()
        with pytest.raises(TerraFMError, match="more than the 100,000 bytes"):
            items_of(server)
        # The server's own copy is in it.
        assert tracemalloc.get_traced_memory()[1] < 45_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(
    "page",
    [b"[]", b"{", b'{"features": 5}', b"{}", b'{"features": [1, null, "a"]}', b'{"a":' * 99,
     b'{"features": [], "links": 7}', b'{"features": [], "links": [null, {"rel": "next"}]}'],
)  # fmt: skip
def test_what_is_no_page_is_one_line_or_nothing(page, tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = lambda *_: page
        with suppress(TerraFMError):
            assert items_of(server) == []


@pytest.mark.parametrize("href", [
    "http://127.0.0.1:9/x", "https://example.org/search", "file:///etc/passwd", "ftp://127.0.0.1/",
    "http://[::1", "//example.org/x", "http://127.0.0.1:99999/x",
])  # fmt: skip
def test_no_page_leads_to_another_server(href, tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.pages = lambda *_: linking(server, href)
        with pytest.raises(StoreRefusedError, match=r"sends on to .*another server"):
            items_of(server)
        server.faults = [(302, {"Location": href})]
        with pytest.raises(StoreRefusedError, match=r"sends on to .*another server"):
            JsonServer(server.address).get(server.address)


def test_redirects_on_the_server_come_to_an_end(tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        server.faults = [(307, {"Location": f"{server.address}/"})]
        assert JsonServer(server.address).get(server.address)["id"] == "api"
        server.faults = [(307, {"Location": "/api"})] * 9
        with pytest.raises(StoreRefusedError, match="redirects without end"):
            JsonServer(server.address).get(server.address)


@pytest.mark.parametrize("href", ["file:///etc/passwd", "http://127.0.0.1:9/a.tif", "zip::a.tif"])
def test_an_asset_of_an_api_leads_to_its_server_or_the_public(href, tmp_path):
    geometry = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    asset = {"href": href, "type": "image/tiff", "eo:bands": [{"name": "B02"}]}
    entry = {**ITEM, "collection": "sentinel-2-l2a", "geometry": geometry, "assets": {"B02": asset}}
    with stac_api(tmp_path, [entry]) as server:
        source = StacItems(f"stac+{server.address}#sentinel-2-l2a", ("s2_l2a",))
        (ref,) = source.cells()
        assert "neither public nor beside" in str(ref.faults[0][1]) or "href is" in str(
            ref.faults[0][1]
        )


def test_a_signer_signs_the_address_that_was_asked_for(tmp_path):
    with stac_api(tmp_path, [ITEM]) as server:
        signer = Signer(f"{server.home}/sas")
        assert signer("https://elsewhere.org/a/b.tif")[0] == "https://elsewhere.org/a/b.tif"
        assert signer("s3://bucket/a.tif")[0] == "s3://bucket/a.tif"
        signed, until = signer(f"{server.home}/files/b.tif")
        assert signed == f"{server.home}/files/b.tif?sig=S1"
        assert until > 1e9
        signer._server = Lying(server)
        with pytest.raises(Exception, match="signature of another address"):
            signer(f"{server.home}/others/b.tif")


class Lying:
    """Answers with the address of another file."""

    def __init__(self, server):
        self.url = f"{server.home}/sas"

    def get(self, url, query):
        return {"href": "https://elsewhere.org/b.tif?sig=a"}


# A collection in a collection, and so on: GEOS would call itself for each.
NESTED = b"\x01\x07\x00\x00\x00\x01\x00\x00\x00" * 100_000


@pytest.mark.parametrize("geometry", [NESTED, b"", b"\x01\x03\x00\x00\x00\xff\xff\xff\xff", None])
def test_a_geometry_of_a_table_that_is_none_is_a_fault_of_its_item(geometry, tmp_path):
    rows = [{"id": "a", "collection": "sentinel-2-l2a", "geometry": geometry,
             "assets": {"B02": {"href": "a.tif", "type": "image/tiff"}}}]  # fmt: skip
    schema = pa.schema([
        ("id", pa.string()), ("collection", pa.string()), ("geometry", pa.binary()),
        ("assets", pa.struct({"B02": pa.struct({"href": pa.string(), "type": pa.string()})})),
    ])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "items.parquet")
    (ref,) = StacItems(str(tmp_path / "items.parquet"), ("s2_l2a",)).cells()
    assert ref.faults


def test_a_table_of_too_many_items_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("terrafm.data.sources.stac_table.STAC_ITEMS", 9)
    table = pa.table({"id": ["a"] * 10, "geometry": [b""] * 10, "assets": [{"a": 1}] * 10})
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(UsageError, match="has 10 items, and 9 are read"):
        StacItems(str(tmp_path / "items.parquet"), ("s2_l2a",)).cells()

"""Rasters in a store are read in few requests, which are under way at the same time."""

import threading
import time

import numpy as np
import pytest
import rasterio
from range_server import RangeHandler, answering, range_server, serving
from rasterio.windows import Window
from safe_products import BANDS, Product, ground
from test_stac import collection, item

from terrafm.data.sources.scenes.blocks import block_ranges
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.stac import StacItems
from terrafm.storage.read_ahead import ReadAhead, fetch_all
from terrafm.storage.seekable import joined


def test_ranges_that_lie_beside_each_other_are_one():
    assert joined([(90_000, 91_000), (0, 10), (10, 20), (1000, 2000), (100, 1500)], 4096) == [
        (0, 2000), (90_000, 91_000),
    ]  # fmt: skip


def test_bytes_are_those_of_the_file_wherever_they_come_from(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    (tmp_path / "a.bin").write_bytes(content)
    with serving(tmp_path) as server:
        file = ReadAhead(f"{server.address}/a.bin")
        fetch_all([(file, [(10_000, 20_000), (50_000, 60_000), (99_990, 100_010)])])
        asked = len(server.sent)
        for start, stop in ((0, 4), (9_000, 12_000), (16_000, 19_000), (50_000, 60_000),
                            (99_990, 100_000)):  # fmt: skip
            assert file.read(start, stop) == content[start:stop]
        assert len(server.sent) == asked
        with file.open() as view:
            for start, size in ((30_000, 10), (30_010, 100), (59_000, 5_000), (99_999, 7)):
                view.seek(start)
                assert view.read(size) == content[start : start + size]
            assert view.read() == b""
        # Two for what was not fetched: small steps beside each other are one.
        assert len(server.sent) == asked + 2
        # The first bytes do not travel twice.
        assert sum(size for _, size in server.sent) < 16_384 + 3_616 + 10_010 + 4_096 + 5_000 + 1


def test_a_file_that_claims_blocks_larger_than_blocks_are_is_left_to_gdal(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=2, height=96, width=96, tiled=True,
        blockxsize=32, blockysize=32, crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 600000, 0, -10, 5000040),
    ) as file:  # fmt: skip
        file.write(np.arange(2 * 96 * 96, dtype=np.uint16).reshape(2, 96, 96))

    class Claims:
        """The file, but for what its index says."""

        def __init__(self, file, size):
            self._file, self._size = file, size

        def __getattr__(self, name):
            return getattr(self._file, name)

        def get_tag_item(self, key, *args, **options):
            if key.startswith("BLOCK_SIZE"):
                return self._size
            return self._file.get_tag_item(key, *args, **options)

    with rasterio.open(path) as file:
        window, seen = Window(30, 0, 10, 20), set()
        ranges = block_ranges(file, [window], seen)
        # Both bands of a pixel lie in one block.
        assert len(ranges) == 2
        assert all(stop - start == 32 * 32 * 2 * 2 for start, stop in ranges)
        assert seen == {(0, 0), (0, 1)}
        assert block_ranges(file, [window], seen) == []
        assert block_ranges(Claims(file, str(1 << 40)), [window], set()) == []


class _Slow(RangeHandler):
    """Waits before each answer, and counts how many wait at the same time."""

    def do_GET(self):
        server = self.server
        with server.lock:
            server.waiting += 1
            server.most = max(server.most, server.waiting)
        time.sleep(0.1)
        with server.lock:
            server.waiting -= 1
        super().do_GET()


@pytest.fixture
def slow_server(tmp_path):
    server = range_server(tmp_path, _Slow)
    server.lock, server.waiting, server.most = threading.Lock(), 0, 0
    with answering(server):
        yield server


def test_the_bands_of_a_cell_are_asked_for_at_once(tmp_path, slow_server):
    product = Product(ground(3, size=1056, bands=BANDS), time="20220706T085611")
    collection(tmp_path / "items.json", item(tmp_path, product))
    request = SceneRequest(tile_size=528, grid="mgrs")
    source = StacItems(f"{slow_server.address}/items.json", ("s2_l2a",), request)
    (ref,) = source.cells()
    slow_server.sent.clear()
    cell = source.read(ref)
    for band in BANDS:
        np.testing.assert_array_equal(cell.products["s2_l2a"].bands[band], product.pixels[band])
    assert slow_server.most >= 8
    # The first bytes of each band, and its blocks.
    assert len(slow_server.sent) <= 2 * len(BANDS)

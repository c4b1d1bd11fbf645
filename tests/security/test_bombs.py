"""Small files that claim to be huge are one line: no gigabytes, no traceback, no endless work."""

from contextlib import suppress

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.geotiff import read_whole
from terrafm.data.rasters.opening import open_raster
from terrafm.data.sources.raster import decode_geotiff, read_patch
from terrafm.errors import UsageError
from terrafm.storage.claims import check_claim
from terrafm.storage.limits import (
    HARMLESS_BYTES,
    MOST_TIMES,
    SUSPICIOUS_BYTES,
    TABLE_TIMES,
    USUAL_TIMES,
)

READERS = {
    "ingest": lambda path: decode_geotiff(path.read_bytes(), str(path)),
    "ingest one band": lambda path: read_patch(str(path)),
    "evaluate": lambda path: read_whole(str(path)),
}
ORDINARY = {"width": 8, "height": 8, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}


def geotiff(path, **changes):
    """A GeoTIFF without any pixels, which GDAL fills in as it reads."""
    profile = ORDINARY | {"SPARSE_OK": True, "tiled": True, "compress": "deflate"} | changes
    with rasterio.open(path, "w", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile):
        pass
    return path


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "shape",
    [
        {"width": 24576, "height": 24576, "blockxsize": 16384, "blockysize": 16384},
        {"width": 10**6, "height": 10**6, "blockxsize": 16384, "blockysize": 16384},
        # The block is decoded, however little of it the image needs.
        {"width": 8, "height": 8, "blockxsize": 16384, "blockysize": 16384},
    ],
    ids=["a gigabyte", "terabytes", "a block of half a gigabyte"],
)
def test_a_geotiff_larger_than_its_bytes_can_hold_is_not_read(read, shape, tmp_path):
    path = geotiff(tmp_path / "image.tif", BIGTIFF="YES", **shape)
    assert path.stat().st_size < 70_000
    with pytest.raises((BadCellError, UsageError), match=r"image\.tif: .* bytes cannot hold") as e:
        read(path)
    assert "\n" not in str(e.value)


def test_windows_are_not_read_out_of_blocks_that_cannot_be(tmp_path):
    path = geotiff(tmp_path / "image.tif", blockxsize=16384, blockysize=16384)
    with pytest.raises(ValueError, match="bytes cannot hold"):
        open_raster(str(path))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_geotiff_that_memory_does_not_suffice_for_is_one_line(read, tmp_path, monkeypatch):
    path = geotiff(tmp_path / "image.tif")

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("terrafm.data.sources.raster.check_whole", refuse)
    monkeypatch.setattr("terrafm.data.rasters.geotiff.check_whole", refuse)
    with pytest.raises((BadCellError, UsageError), match=r"image\.tif: .*not fit into memory"):
        read(path)


@pytest.mark.parametrize("compress", ["deflate", "zstd", "lzw"])
def test_a_constant_image_is_no_bomb(compress, tmp_path):
    path = tmp_path / "image.tif"
    profile = ORDINARY | {"width": 2048, "height": 2048, "compress": compress}
    with rasterio.open(path, "w", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile) as f:
        f.write(np.full((1, 2048, 2048), 7, np.uint16))
    assert decode_geotiff(path.read_bytes(), "here").pixels.shape == (1, 2048, 2048)
    # A hundred times as large, it would still be read.
    check_claim(2048 * 2048 * 2 * 100, path.stat().st_size * 100)


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64", "int8", "float64"])
def test_pixels_of_any_type_are_counted(dtype, tmp_path):
    path = geotiff(tmp_path / "image.tif", dtype=dtype)
    assert read_whole(str(path)).pixels.shape == (1, 8, 8)


@given(
    st.integers(0, 1 << 40), st.integers(0, 1 << 36), st.sampled_from([USUAL_TIMES, TABLE_TIMES])
)
def test_padding_a_file_buys_no_more_memory_than_its_own_length_many_times(claimed, stored, usual):
    """What is padded has to be stored and sent: past 1 GiB a byte buys 16, in a table 64."""
    with suppress(ValueError):
        check_claim(claimed, stored, usual=usual)
        assert claimed <= max(SUSPICIOUS_BYTES, usual * stored)
        assert claimed <= max(HARMLESS_BYTES, MOST_TIMES * stored)

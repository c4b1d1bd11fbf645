"""Rasters of a few bytes: their memory and time stay under the stated limits, wherever read."""

import struct

import numpy as np
import pytest
import rasterio

from terrafm.data.rasters.geotiff import OpenGeotiff, read_whole
from terrafm.storage.limits import RASTER_BANDS, SUSPICIOUS_BYTES

HERE = "terrafm.data.rasters.geotiff"
READERS = {
    "ingest": ("terrafm.data.sources.raster", "read_geotiff(path)"),
    "ingest one band": ("terrafm.data.sources.raster", "read_patch(path)"),
    "evaluate": (HERE, "read_whole(path)"),
    "embed": (HERE, "OpenGeotiff(path).sample()"),
    "a window": (HERE, "OpenGeotiff(path).read(Window(0, 0, 8, 8))"),
    "climate": (
        "terrafm.data.land.climate",
        "ClimateZones(path).codes(np.array([2.9]), np.array([15.1]))",
    ),
    "land cover": (
        "terrafm.data.land.landcover",
        "WorldCover(os.path.dirname(path)).codes('EPSG:32633', (10, 0, 5e5, 0, -10, 1e5), (8, 8))",
    ),
}
IMPORTS = "import os\nimport numpy as np\nfrom rasterio.windows import Window\nfrom {} import {}"
# As WorldCover names the tile under that grid.
NAME = "ESA_WorldCover_10m_2021_v200_N00E015_Map.tif"
ERRORS = "OSError, ValueError, RasterioError"


def tiff(path, width, height, bands=1, bits=8, sample_format=1):
    """A TIFF of one strip in EPSG:4326, of which there are 8 bytes."""
    short, long, double = 3, 4, 12
    arrays = 200
    tags = {
        256: (long, 1, width), 257: (long, 1, height), 258: (short, 1, bits), 259: (short, 1, 8),
        262: (short, 1, 1), 273: (long, 1, 400), 277: (short, 1, bands), 278: (long, 1, height),
        279: (long, 1, 8), 339: (short, 1, sample_format), 33550: (double, 3, arrays),
        33922: (double, 6, arrays + 24), 34735: (short, 12, arrays + 72),
    }  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, (kind, count, value) in tags.items():
        head += struct.pack("<HHII", tag, kind, count, value)
    place = struct.pack("<9d", 1e-4, 1e-4, 0, 0, 0, 0, 15, 3, 0)
    keys = struct.pack("<12H", 1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)
    path.write_bytes(head.ljust(arrays, b"\0") + place + keys + bytes(150))
    assert path.stat().st_size < 500
    return path


def test_the_bombs_are_rasters_that_gdal_opens(tmp_path):
    with rasterio.open(tiff(tmp_path / "bomb.tif", 36000, 36000, bits=64)) as opened:
        assert opened.crs.to_epsg() == 4326
        assert opened.transform.c == 15


BOMBS = {
    "ten gigabytes in a strip": {"width": 36000, "height": 36000, "bits": 64, "sample_format": 3},
    "six gigabytes in a strip": {"width": 80000, "height": 80000},
    "32,769 bands": {"width": 8, "height": 8, "bands": 32769},
    "65,535 bands": {"width": 36000, "height": 36000, "bands": 65535},
}


@pytest.mark.parametrize("reader", READERS)
def test_small_rasters_take_little_memory_and_time(reader, tmp_path, bounded):
    module, call = READERS[reader]
    paths = []
    for number, bomb in enumerate(BOMBS.values()):
        (tmp_path / str(number)).mkdir()
        paths.append(tiff(tmp_path / str(number) / NAME, **bomb))
    imports = IMPORTS.format(module, call.partition("(")[0])
    imports += "\nfrom rasterio.errors import RasterioError"
    for ended in bounded(imports, call, *paths, errors=ERRORS, timeout=30):
        assert ended.code == 2, ended
        assert NAME in ended.said or reader in ("a window", "embed")
        assert ended.grown < 500


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_follows_a_raster_that_leads_elsewhere(reader, tmp_path, bounded):
    """A VRT makes GDAL open another file, or ask a server."""
    private = tmp_path / "private.tif"
    profile = {"width": 36000, "height": 36000, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    transform = rasterio.Affine(1 / 12000, 0, 15, 0, -1 / 12000, 3)
    with rasterio.open(
        private, "w", driver="GTiff", SPARSE_OK=True, tiled=True, transform=transform, **profile
    ):
        pass
    path = tmp_path / "archive" / NAME
    path.parent.mkdir()
    path.write_text(
        '<VRTDataset rasterXSize="36000" rasterYSize="36000"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>15, 8.333333333333333e-05, 0, 3, 0, -8.333333333333333e-05</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{private}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(path) as opened:
        assert opened.shape == (36000, 36000)
    module, call = READERS[reader]
    imports = IMPORTS.format(module, call.partition("(")[0])
    imports += "\nfrom rasterio.errors import RasterioError"
    (ended,) = bounded(imports, call, path, errors=ERRORS)
    assert ended.code == 2, ended


def test_a_nearly_constant_image_is_decoded_up_to_a_gibibyte(tmp_path, bounded):
    """The most that few bytes may stand for, and no more: measured where they are real."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32633",
               "compress": "deflate", "tiled": True}  # fmt: skip
    transform = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    for name, side in (("below", 22000), ("above", 24000)):
        path = tmp_path / f"{name}.tif"
        with rasterio.open(
            path, "w", width=side, height=side, transform=transform, **profile
        ) as file:
            file.write(np.full((1, side, side), 7, np.uint8))
        assert path.stat().st_size < 3_000_000
    imports = f"from {HERE} import read_whole"
    below, above = bounded(
        imports, "read_whole(path).pixels.shape", tmp_path / "below.tif", tmp_path / "above.tif"
    )
    assert (below.code, below.said) == (0, "(1, 22000, 22000)")
    assert below.grown < 3 * SUSPICIOUS_BYTES >> 20
    assert above.code == 2
    assert "cut it into smaller ones" in above.said


def test_windows_are_bounded_and_lie_in_the_image(tmp_path):
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=40000, height=40000, count=13, dtype="uint16",
        SPARSE_OK=True, tiled=True, crs="EPSG:32633", BIGTIFF="YES",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ):  # fmt: skip
        pass
    image = OpenGeotiff(str(path))
    window = rasterio.windows.Window
    assert image.read(window(100, 100, 224, 224)).pixels.shape == (13, 224, 224)
    for odd in (window(0, 0, 30000, 30000), window(39999, 0, 2, 2), window(-1, 0, 2, 2),
                window(0, 0, 0, 2)):  # fmt: skip
        with pytest.raises(ValueError, match=r"window of \d+ x \d+ pixels"):
            image.read(odd)


def test_as_many_bands_as_any_sensor_has_are_read(tmp_path):
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=8, height=8, count=RASTER_BANDS, dtype="uint16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(np.ones((RASTER_BANDS, 8, 8), np.uint16))
    assert read_whole(str(path)).pixels.shape == (RASTER_BANDS, 8, 8)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("strip", [16, 20000])
def test_a_raster_that_another_library_will_read(mask, strip, tmp_path, bounded):
    """Of a set that torchgeo reads: the whole of each file, whatever it claims."""
    sound, bomb = tmp_path / "sound" / "0.tif", tmp_path / "bomb" / "0.tif"
    for path, side in ((sound, 64), (bomb, 20000)):
        path.parent.mkdir()
        with rasterio.open(
            path, "w", driver="GTiff", count=1 if mask else 13, height=side, width=side,
            dtype="uint8" if mask else "uint16", compress="deflate", sparse_ok=True,
            blockysize=strip,
        ):  # fmt: skip
            pass
    assert bomb.stat().st_size < 1 << 20
    module = "from terrafm.eval.datasets.library_files import check_folder"
    passed, refused = bounded(module, "check_folder(path)", sound.parent, bomb.parent)
    assert passed.code == 0, passed
    assert refused.code == 2, refused
    assert "bomb/0.tif: " in refused.said
    assert "pixels it claims" in refused.said
    assert refused.grown < 100

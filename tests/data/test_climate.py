import pickle

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.data.land.climate import ClimateZones
from terrafm.errors import UsageError


def write(path, pixels, degrees, west=-180.0, north=90.0, crs="EPSG:4326", nodata=None):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=pixels.dtype.name,
        count=1,
        height=pixels.shape[0],
        width=pixels.shape[1],
        crs=crs,
        transform=rasterio.Affine(degrees, 0, west, 0, -degrees, north),
        nodata=nodata,
    ) as file:
        file.write(pixels, 1)
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every pixel of one degree another code."""
    codes = np.arange(1, 180 * 360 + 1, dtype=np.int32).reshape(180, 360)
    return write(tmp_path_factory.mktemp("climate") / "world.tif", codes, 1.0)


@given(st.floats(-89.99, 89.99), st.floats(-179.99, 179.99), st.sampled_from([-360, 0, 360]))
@settings(max_examples=60)
def test_the_code_is_that_of_the_pixel_that_holds_the_place(world, latitude, longitude, turn):
    zones = ClimateZones(world)
    (code,) = zones.codes(np.array([latitude]), np.array([longitude]))
    row, column = divmod(int(code) - 1, 360)
    assert 90 - row - 1 - 1e-9 <= latitude <= 90 - row + 1e-9
    assert column - 180 - 1e-9 <= longitude <= column - 179 + 1e-9
    (turned,) = zones.codes(np.array([latitude]), np.array([longitude + turn]))
    assert abs(int(turned) - int(code)) <= 1


def test_poles_and_the_antimeridian(world):
    zones = pickle.loads(pickle.dumps(ClimateZones(world)))
    places = [(90.0, -180.0, 1), (-90.0, 179.5, 180 * 360), (0.5, 180.0, 89 * 360 + 1)]
    latitude, longitude, expected = (np.array(column) for column in zip(*places, strict=True))
    found = zones.codes(latitude, longitude)
    assert found.tolist() == expected.tolist()
    assert found.dtype == np.int32


def test_outside_and_nodata_are_unknown(tmp_path):
    codes = np.full((10, 10), 7, np.uint8)
    codes[0, 0] = 255
    zones = ClimateZones(write(tmp_path / "part.tif", codes, 0.5, 170.0, 5.0, nodata=255))
    latitude = np.array([4.9, 4.9, 4.9, 9.0, -1.0])
    longitude = np.array([170.1, 171.0, 160.0, 171.0, 171.0])
    assert zones.codes(latitude, longitude).tolist() == [0, 7, 0, 0, 0]


def test_rasters_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match="cannot open the climate raster"):
        ClimateZones(str(tmp_path / "missing.tif"))
    metres = write(tmp_path / "m.tif", np.ones((4, 4), np.uint8), 10.0, 5e5, 5e6, "EPSG:32633")
    with pytest.raises(UsageError, match="must be in EPSG:4326, not EPSG:32633"):
        ClimateZones(metres)
    with pytest.raises(UsageError, match="integer codes, not float32"):
        ClimateZones(write(tmp_path / "f.tif", np.ones((4, 4), np.float32), 1.0))

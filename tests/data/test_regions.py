import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm.data.land.regions import region_codes, region_name


@pytest.mark.parametrize(
    ("latitude", "longitude", "code", "name"),
    [
        (89.0, -179.0, 0, "90N..60N 180W..150W"),
        (48.2, 16.4, 18, "60N..30N 0E..30E"),
        (-0.1, 0.0, 42, "0N..30S 0E..30E"),
        (0.0, 0.0, 42, "0N..30S 0E..30E"),
        (0.1, -0.1, 29, "30N..0N 30W..0E"),
        (-90.0, 179.9, 71, "60S..90S 150E..180E"),
        (90.0, 180.0, 0, "90N..60N 180W..150W"),
    ],
)
def test_known_places(latitude, longitude, code, name):
    (found,) = region_codes(np.array([latitude]), np.array([longitude]))
    assert found == code
    assert found.dtype == np.int32
    assert region_name(code) == name


@given(
    st.lists(
        st.tuples(
            st.floats(-90, 90, allow_subnormal=False), st.floats(-180, 180, allow_subnormal=False)
        ),
        max_size=20,
    )
)
def test_every_place_lies_in_the_block_that_is_named(places):
    latitude = np.array([p[0] for p in places], float)
    longitude = np.array([p[1] for p in places], float)
    codes = region_codes(latitude, longitude)
    assert codes.shape == latitude.shape
    for lat, lon, code in zip(latitude, longitude, codes, strict=True):
        row, column = divmod(int(code), 12)
        # A place a rounding error off an edge may fall on either side of it.
        assert 90 - 30 * (row + 1) - 1e-9 <= lat <= 90 - 30 * row + 1e-9
        west = 30 * column - 180
        assert min(abs(lon - west - turn) for turn in (0, 360, -360)) <= 30 + 1e-9


@given(st.floats(-90, 90), st.integers(-180, 179))
def test_a_whole_turn_changes_nothing(latitude, longitude):
    north = np.full(3, latitude)
    codes = region_codes(north, longitude + np.array([0.0, 360.0, -360.0]))
    assert len(set(codes.tolist())) == 1

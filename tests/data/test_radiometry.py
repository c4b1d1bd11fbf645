import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terrafm.data.rasters.offsets import decide
from terrafm.data.rasters.units import Decision, to_storage
from terrafm.data.sources.base import Product
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
BANDS = MODALITIES["s2_l2a"].bands


def optical(modality, pixels, **fields):
    return Product(modality, dict.fromkeys(BANDS, pixels), dict.fromkeys(BANDS, 10), **fields)


@pytest.mark.parametrize(
    ("place", "l1c", "l2a"),
    [
        ("282D_485L_3_3", 1000, 0),
        ("38D_378R_2_3", 0, 0),
        ("433D_629L_3_1", 1000, 1000),
        ("609U_541L_3_0", 1000, 0),
    ],
)
def test_offsets_of_real_scenes_without_a_baseline(realdata, place, l1c, l2a):
    source = GeotiffFolder(str(realdata / "colocated"), ALL)
    ref = next(ref for ref in source.cells() if ref.cell_id == place)
    products = source.read(ref).products
    found = decide(products)
    assert (found["s2_l1c"].offset, found["s2_l2a"].offset) == (l1c, l2a)
    assert found["s2_l1c"].reason == "cirrus band"
    assert found["s2_l2a"].reason == "paired with Level-1C"
    assert found["s1"] == Decision(0, "radar", "dB")


@pytest.mark.parametrize(
    ("place", "l1c", "l2a"), [("433D_629L_3_1", 1000, 1000), ("38D_378R_2_3", 0, 0)]
)
def test_offsets_of_real_scenes_by_dark_pixels_alone(realdata, place, l1c, l2a):
    source = GeotiffFolder(str(realdata / "colocated"), ALL)
    ref = next(ref for ref in source.cells() if ref.cell_id == place)
    products = source.read(ref).products
    products["s2_l1c"].cirrus = None
    for name, offset in (("s2_l1c", l1c), ("s2_l2a", l2a)):
        found = decide({name: products[name]})[name]
        assert found.offset == offset
        assert found.reason == "dark pixels"


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [("N0400", 1000), ("N0510", 1000), ("N0399", 0), ("N0214", 0), ("N9999", 0)],
)
def test_the_baseline_outweighs_the_pixels(baseline, offset):
    name = f"S2A_MSIL2A_20220706T085611_{baseline}_R007_T33NZA_20220706T153419"
    for value in (50, 5000):
        product = optical("s2_l2a", np.full((4, 4), value, np.uint16), product_id=name)
        assert decide({"s2_l2a": product})["s2_l2a"] == Decision(
            offset, f"baseline {baseline}", "DN"
        )


def test_a_product_without_pixels_has_no_offset():
    product = optical("s2_l1c", np.zeros((4, 4), np.uint16), cirrus=np.zeros((4, 4), np.uint16))
    assert decide({"s2_l1c": product})["s2_l1c"] == Decision(0, "no valid pixels", "DN")


def test_radar_unit_ignores_nodata_and_stray_negatives():
    power = np.full((10, 10), 0.05, np.float32)
    power[0] = -32768
    power[1, :3] = -1e-5
    product = Product("s1", {"VV": power, "VH": power}, {"VV": 10, "VH": 10}, nodata=-32768)
    assert radar_unit(product) == "linear"
    product.bands["VH"] = product.bands["VV"] = 10 * np.log10(np.full((4, 4), 0.05))
    assert radar_unit(product) == "dB"


def test_optical_storage_values():
    pixels = np.array([0, 1, 999, 1000, 1001, 2500, 65535], np.uint16)
    with_offset = to_storage(pixels, "s2_l2a", None, Decision(1000, "", "DN"))
    assert with_offset.dtype == np.uint16
    assert with_offset.tolist() == [0, 1, 1, 1, 1, 1500, 64535]
    without = to_storage(pixels, "s2_l2a", None, Decision(0, "", "DN"))
    assert without.tolist() == [0, 1, 999, 1000, 1001, 2500, 65535]


def test_optical_storage_of_odd_values():
    pixels = np.array([np.nan, np.inf, -np.inf, -30.0, -9999.0, 12.6, 7.0, 1e6])
    stored = to_storage(pixels, "s2_l1c", 7.0, Decision(0, "", "DN"))
    assert stored.tolist() == [0, 0, 0, 1, 0, 13, 0, 65535]
    negative = np.array([-32768, -1000, -999, -1, 0, 1], np.int16)
    assert to_storage(negative, "s2_l2a", None, Decision(0, "", "DN")).tolist() == [
        0,
        0,
        1,
        1,
        0,
        1,
    ]


def test_radar_storage_values():
    power = np.array([1.0, 0.1, 1e-5, 1e-9, 0.0, -0.1, np.nan, np.inf, -32768.0], np.float32)
    stored = to_storage(power, "s1", -32768.0, Decision(0, "", "linear"))
    assert stored.dtype == np.int16
    assert stored.tolist() == [0, -1000, -5000, -5000, -5000, -5000, -32768, -32768, -32768]
    decibel = np.array([-12.344, 3.0, -80.0, np.nan, 400.0])
    assert to_storage(decibel, "s1", None, Decision(0, "", "dB")).tolist() == [
        -1234,
        300,
        -5000,
        -32768,
        32767,
    ]


def test_zeros_in_decibel_are_fill_however_many_they_are():
    """Exports mask with zeros and do not always say so."""
    pixels = np.full((20, 20), -13.5, np.float32)
    pixels[:, :13] = 0.0
    product = Product("s1", {"VV": pixels, "VH": pixels - 7 * (pixels < 0)}, {"VV": 10, "VH": 10})
    assert radar_unit(product) == "dB"
    stored = to_storage(pixels, "s1", None, Decision(0, "", "dB"))
    assert (stored[:, :13] == -32768).all()
    assert (stored[:, 13:] == -1350).all()


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from(["linear", "dB"]),
)
def test_radar_storage_stays_within_its_bounds(pixels, unit):
    stored = to_storage(pixels, "s1", None, Decision(0, "", unit))
    finite = np.isfinite(pixels)
    if unit == "dB":
        finite &= pixels != 0  # fill
    assert (stored[~finite] == -32768).all()
    assert (stored[finite] >= -5000).all()
    if unit == "linear":
        bright = finite & (pixels > 1e-5) & (pixels < 1e30)
        exact = 10 * np.log10(pixels[bright].astype(np.float64))
        assert np.abs(stored[bright] / 100 - exact).max(initial=0) <= 0.00501


@given(hnp.arrays(np.int32, 20, elements=st.integers(-40000, 80000)), st.sampled_from([0, 1000]))
def test_optical_storage_round_trip(pixels, offset):
    stored = to_storage(pixels, "s2_l2a", None, Decision(offset, "", "DN")).astype(np.int64)
    valid = (pixels != 0) & (pixels > -1000)
    assert (stored[~valid] == 0).all()
    assert (stored[valid] == np.clip(pixels[valid] - offset, 1, 65535)).all()

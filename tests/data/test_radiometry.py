from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terrafm.data.archive import Product
from terrafm.data.rasters.units import Decision, to_storage, unit_of
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.data.sources.offsets import Survey, decide
from terrafm.errors import PixelError
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


def named(baseline):
    return f"S2A_MSIL2A_20220706T085611_{baseline}_R007_T33NZA_20220706T153419"


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [("N0400", 1000), ("N0510", 1000), ("N0399", 0), ("N0214", 0), ("N9999", 0)],
)
def test_the_baseline_is_believed_where_pixels_do_not_contradict(baseline, offset):
    product = optical("s2_l2a", np.full((4, 4), 5000, np.uint16), product_id=named(baseline))
    found = decide({"s2_l2a": product})["s2_l2a"]
    assert found == Decision(offset, f"baseline {baseline}", "DN")


def test_a_product_without_pixels_has_no_offset():
    product = optical("s2_l1c", np.zeros((4, 4), np.uint16), cirrus=np.zeros((4, 4), np.uint16))
    assert decide({"s2_l1c": product})["s2_l1c"] == Decision(0, "no valid pixels", "DN")


def test_radar_unit_ignores_nodata_and_stray_negatives():
    power = np.full((10, 10), 0.05, np.float32)
    power[0] = -32768
    power[1, :3] = -1e-5
    product = Product("s1", {"VV": power, "VH": power}, {"VV": 10, "VH": 10}, nodata=-32768)
    assert decide({"s1": product})["s1"].unit == "linear"
    product.bands["VH"] = product.bands["VV"] = 10 * np.log10(np.full((4, 4), 0.05))
    assert decide({"s1": product})["s1"].unit == "dB"


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
    # No power at all is fill; too little to be measured is the floor.
    assert stored.tolist() == [0, -1000, -5000, -5000, *[-32768] * 5]
    # Nothing on Earth is 400 dB.
    decibel = np.array([-12.344, 3.0, -80.0, np.nan, 400.0, -9999.0])
    stored = to_storage(decibel, "s1", None, Decision(0, "", "dB"))
    assert stored.tolist() == [-1234, 300, -5000, -32768, -32768, -32768]


def test_zeros_in_decibel_are_fill_however_many_they_are():
    """Exports mask with zeros and do not always say so."""
    pixels = np.full((20, 20), -13.5, np.float32)
    pixels[:, :13] = 0.0
    product = Product("s1", {"VV": pixels, "VH": pixels - 7 * (pixels < 0)}, {"VV": 10, "VH": 10})
    assert decide({"s1": product})["s1"].unit == "dB"
    stored = to_storage(pixels, "s1", None, Decision(0, "", "dB"))
    assert (stored[:, :13] == -32768).all()
    assert (stored[:, 13:] == -1350).all()


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from(["linear", "dB"]),
)
def test_radar_storage_stays_within_its_bounds(pixels, unit):
    stored = to_storage(pixels, "s1", None, Decision(0, "", unit))
    exact = pixels.astype(np.float64)
    if unit == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = 10 * np.log10(exact)
    measured = np.isfinite(pixels) & (np.abs(exact) <= 100)
    measured &= pixels > 0 if unit == "linear" else pixels != 0
    assert (stored[~measured] == -32768).all()
    assert (stored[measured] >= -5000).all()
    above = measured & (exact > -50)
    assert np.abs(stored[above] / 100 - exact[above]).max(initial=0) <= 0.00501


@given(hnp.arrays(np.int32, 20, elements=st.integers(-40000, 80000)), st.sampled_from([0, 1000]))
def test_optical_storage_round_trip(pixels, offset):
    stored = to_storage(pixels, "s2_l2a", None, Decision(offset, "", "DN")).astype(np.int64)
    valid = (pixels != 0) & (pixels > -1000)
    assert (stored[~valid] == 0).all()
    assert (stored[valid] == np.clip(pixels[valid] - offset, 1, 65535)).all()


_LEAVES = [350, 420, 650, 600, 1000, 2100, 2500, 2700, 2800, 2850, 1900, 1100]
_DESERT = [1100, 1400, 2000, 2600, 2900, 3100, 3300, 3400, 3600, 3700, 4500, 4100]
LEAVES, DESERT = (dict(zip(BANDS, levels, strict=True)) for levels in (_LEAVES, _DESERT))


def scene(offset=0, ground=None, side=40, seed=0):
    """Bands of a Level-2A place of one kind of ground."""
    rng = np.random.default_rng(seed)
    ground = ground or dict(
        zip(
            BANDS, [350, 420, 650, 600, 1000, 2100, 2500, 2700, 2800, 2850, 1900, 1100], strict=True
        )
    )
    noise = 1 + rng.normal(0, 0.05, (side, side))
    return {band: np.rint(ground[band] * noise + offset).astype(np.uint16) for band in BANDS}


DESERT = dict(
    zip(
        BANDS, [1100, 1400, 2000, 2600, 2900, 3100, 3300, 3400, 3600, 3700, 4500, 4100], strict=True
    )
)


def product(bands, cirrus=None, modality="s2_l2a", **fields):
    if cirrus is not None:
        cirrus = np.full(bands["B01"].shape, cirrus, np.uint16)
    return Product(modality, bands, dict.fromkeys(bands, 10), cirrus=cirrus, **fields)


@pytest.mark.parametrize(
    ("claimed", "offset", "reason"),
    [
        ("N0400", 0, "a band below 1000, against baseline N0400"),
        ("N0509", 1000, "baseline N0509"),
        ("N0208", 0, "baseline N0208"),
    ],
)
def test_a_name_that_bands_far_below_the_offset_contradict(claimed, offset, reason):
    bands = scene(offset)
    found = decide({"s2_l2a": product(bands, product_id=named(claimed))})["s2_l2a"]
    assert (found.offset, found.reason) == (offset, reason)


@pytest.mark.parametrize("noise", [0, 4, 60])
@pytest.mark.parametrize(("level", "offset"), [(2, 0), (54, 0), (1004, 1000), (1040, 1000)])
def test_noise_does_not_turn_the_cirrus_band(level, offset, noise):
    """Real scenes have a 0.1 percentile of 2 to 54 without the offset, of 1004 to 1040 with it."""
    rng = np.random.default_rng(0)
    cirrus = np.clip(level + rng.normal(0, noise, (100, 100)), 1, None).round().astype(np.uint16)
    found = decide({"s2_l1c": replace(product(scene(offset), modality="s2_l1c"), cirrus=cirrus)})
    assert found["s2_l1c"].offset == offset
    assert found["s2_l1c"].margin > 200


@pytest.mark.parametrize(("claimed", "cirrus", "offset"), [("N0400", 20, 0), ("N0208", 1020, 1000)])
def test_the_cirrus_band_outweighs_the_name(claimed, cirrus, offset):
    bands = scene(offset=1000, ground=DESERT)
    name = named(claimed).replace("L2A", "L1C")
    l1c = product(bands, cirrus=cirrus, modality="s2_l1c", product_id=name)
    found = decide({"s2_l1c": l1c})["s2_l1c"]
    assert (found.offset, found.reason) == (offset, f"cirrus band, against baseline {claimed}")


def test_a_pair_outweighs_a_name_only_of_the_same_pass():
    first = product(scene(ground=DESERT), cirrus=15, modality="s2_l1c", time="2022-03-01T10:00:00")
    for time, offset in (("2022-03-01T10:00:08", 0), ("2022-03-06T10:00:00", 1000), ("", 1000)):
        second = product(scene(ground=DESERT), product_id=named("N0400"), time=time)
        assert decide({"s2_l1c": first, "s2_l2a": second})["s2_l2a"].offset == offset


@pytest.mark.parametrize("unit", ["DN", "reflectance"])
@pytest.mark.parametrize(("offset", "reason"), [(0, "dark pixels"), (1000, "leaves in blue")])
def test_leaves_show_the_offset_where_nothing_is_dark(offset, reason, unit):
    bands = scene(offset)
    if unit == "reflectance":
        bands = {name: (band / 10000).astype(np.float32) for name, band in bands.items()}
    found = decide({"s2_l2a": product(bands)})["s2_l2a"]
    assert (found.offset, found.reason, found.unit) == (offset, reason, unit)


def test_a_desert_alone_keeps_its_numbers():
    for ground in (DESERT, {band: level // 4 + 1500 for band, level in LEAVES.items()}):
        found = decide({"s2_l2a": product(scene(ground=ground))})["s2_l2a"]
        assert (found.offset, found.reason) == (0, "too bright to tell")


def test_other_products_of_the_archive_decide_where_a_product_does_not():
    def surveyed(*offsets):
        found = [decide({"s2_l2a": product(scene(offset))}) for offset in offsets]
        return Survey.of(found)

    gravel = product(scene(ground=dict.fromkeys(BANDS, 1150)))
    desert = product(scene(ground=DESERT))
    alone = decide({"s2_l2a": gravel})["s2_l2a"]
    assert (alone.offset, alone.reason) == (1000, "dark pixels")
    harmonised, offset, mixed = surveyed(0, 0, 0), surveyed(1000, 1000), surveyed(0, 1000)
    for archive, expected in ((harmonised, (0, 0)), (offset, (1000, 1000)), (mixed, (1000, 0))):
        found = [decide({"s2_l2a": one}, archive)["s2_l2a"].offset for one in (gravel, desert)]
        assert tuple(found) == expected
    # Leaves are no bright ground, whatever the others are.
    assert decide({"s2_l2a": product(scene(1000))}, harmonised)["s2_l2a"].offset == 1000


def test_an_offset_that_a_tag_took_off_twice_comes_back():
    bands = {name: (band - 1000.0) / 10000 for name, band in scene().items()}
    found = decide({"s2_l2a": product(bands, claim=(0, "offset tag"))})["s2_l2a"]
    assert (found.offset, found.reason) == (-1000, "a band below zero, against offset tag")
    stored = to_storage(bands["B08"], "s2_l2a", None, found)
    np.testing.assert_array_equal(stored, scene()["B08"])


RNG = np.random.default_rng(3)
GROUND = RNG.integers(200, 4000, (12, 30, 30))
POWER = 10 ** RNG.normal(-1.3, 0.2, (2, 30, 30))


@pytest.mark.parametrize(
    ("modality", "pixels", "unit"),
    [
        ("s2_l2a", GROUND.astype(np.uint16), "DN"),
        ("s2_l2a", GROUND.astype(np.int32), "DN"),
        ("s2_l2a", GROUND.astype(np.float64) + 0.3, "DN"),
        ("s2_l2a", GROUND / 10000, "reflectance"),
        ("s2_l1c", (GROUND / 10000).astype(np.float16), "reflectance"),
        ("s1", POWER, "linear"),
        ("s1", 10 * np.log10(POWER), "dB"),
        ("s1", np.rint(10 * np.log10(POWER)).astype(np.int8), "dB"),
        ("s2_l2a", (GROUND // 16).astype(np.uint8), "8-bit pixels look like a picture"),
        ("s2_l2a", (GROUND // 16).astype(np.uint16), "look like percent or an 8-bit picture"),
        ("s2_l2a", GROUND / 100, "look like percent or an 8-bit picture"),
        ("s2_l2a", GROUND * 1e-8, "too dark for reflectance"),
        ("s2_l2a", (GROUND * 16).astype(np.uint16), "radiance or a stretched picture"),
        ("s1", np.sqrt(POWER * 1e6).astype(np.uint16), "uncalibrated amplitudes"),
        ("s1", np.rint(1000 * np.log10(POWER)).astype(np.int16), "hundredths of a dB"),
    ],
)
def test_units_are_known_by_their_values_or_refused(modality, pixels, unit):
    bands = dict(zip(MODALITIES[modality].bands, pixels, strict=True))
    if " " not in unit:
        assert unit_of(bands, modality, None, "here") == unit
        return
    with pytest.raises(PixelError, match=rf"^here: .*{unit}"):
        unit_of(bands, modality, None, "here")


def test_the_darkest_of_many_is_in_their_unit():
    lake = {band: np.full((30, 30), 40, np.uint16) for band in BANDS}
    assert unit_of(lake, "s2_l2a", None, "here", usual="DN") == "DN"
    with pytest.raises(PixelError, match="percent or an 8-bit picture"):
        unit_of(lake, "s2_l2a", None, "here")


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, -9999, -32768, -99999, 1e38, -3.4e38, 0])
@pytest.mark.parametrize("unit", ["linear", "dB", "DN", "reflectance"])
def test_fill_is_missing_in_any_unit_without_a_tag(unit, fill):
    modality, level = {
        "linear": ("s1", 0.05), "dB": ("s1", -13.0), "DN": ("s2_l2a", 900.0),
        "reflectance": ("s2_l2a", 0.09),
    }[unit]  # fmt: skip
    pixels = np.array([level, fill], np.float64)
    stored = to_storage(pixels, modality, None, Decision(0, "", unit))
    assert stored.tolist()[1] == MODALITIES[modality].nodata
    assert stored[0] == {"linear": -1301, "dB": -1300, "DN": 900, "reflectance": 900}[unit]

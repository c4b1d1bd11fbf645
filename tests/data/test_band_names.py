"""Labels of bands, as archives and programs write them, and what they must not be taken for."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm.data.rasters.bands import (
    EUROSAT_ORDER,
    L1C_ORDER,
    canonical,
    check_named,
    match_bands,
    match_file,
    modality_of,
)
from terrafm.errors import PixelError
from terrafm.modalities import MODALITIES

L2A = MODALITIES["s2_l2a"].bands
STAC = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
)  # fmt: skip


@pytest.mark.parametrize(
    ("label", "band"),
    [
        ("B8A", "B8A"), ("08A - Vegetation Red Edge", "B8A"), ("b08a", "B8A"), ("8", "B08"),
        ("8A", "B8A"), ("08A", "B8A"), ("B1", "B01"), ("01 - Coastal aerosol", "B01"),
        ("B12.tif", "B12"), ("B10", "B10"), ("B2_10m", "B02"), ("B12_sr", "B12"), ("sr_b4", "B04"),
        ("B02_20m", "B02"), ("S2_B03", "B03"), ("Sentinel-2 B11", "B11"), ("Band 8A", "B8A"),
        ("band_8a", "B8A"), ("B8 (NIR)", "B08"), ("B4, central wavelength 665 nm", "B04"),
        ("T33UXP_20230301T075841_B02_10m", "B02"), ("09 - Water vapour", "B09"),
        ("10 - SWIR - Cirrus", "B10"), ("11 - SWIR", "B11"), ("05 - Vegetation Red Edge", "B05"),
        ("red", "B04"), ("Red", "B04"), ("surface_reflectance_red", "B04"), ("NIR", "B08"),
        ("near infrared", "B08"), ("Near Infra-Red", "B08"), ("Narrow NIR", "B8A"),
        ("nir_narrow", "B8A"), ("rededge071", "B05"), ("rededge075", "B06"), ("rededge078", "B07"),
        ("Red Edge 1", "B05"), ("red-edge 3", "B07"), ("RE2", "B06"), ("SWIR 1", "B11"),
        ("swir_2", "B12"), ("short wave infrared 2", "B12"), ("coastal aerosol", "B01"),
        ("ultra blue", "B01"), ("cirrus", "B10"), ("water vapor", "B09"), ("  b2 ", "B02"),
        # Not told apart, another satellite's, or no band.
        ("B13", None), ("Cloud Probability", None), ("B1A", None), ("B100", None), ("", None),
        ("TCI_R", None), ("rededge", None), ("swir", None), ("B5 - NIR", None), ("b2 blue", "B02"),
        ("b2 green", None), ("B8_B4", None), ("B8/B4 ratio", None), ("NDVI", None), ("QA60", None),
        ("B02_std", None), ("8 bit", None), ("12 months", None), ("temperature", None),
    ],
)  # fmt: skip
def test_labels_of_optical_bands(label, band):
    assert canonical(label, "s2_l1c") == band


@pytest.mark.parametrize(
    ("label", "band"),
    [
        ("VV", "VV"), ("vh", "VH"), ("VV - dB", "VV"), ("VV_db", "VV"), ("Gamma0_VV", "VV"),
        ("sigma0-vh", "VH"), ("Sigma0_VH_db", "VH"), ("gamma0VH", "VH"), ("S1A_IW_VV", "VV"),
        ("vh_linear", "VH"), ("VV.tif", "VV"), ("HH", "HH"),
        ("VVH", None), ("VV/VH", None), ("VV_VH", None), ("Amplitude_VV", None), ("angle", None),
        ("ratio", None), ("B02", None), ("", None),
    ],
)  # fmt: skip
def test_labels_of_radar_bands(label, band):
    assert canonical(label, "s1") == band


SPELLINGS = [
    lambda band: band, lambda band: band.lower(), lambda band: band.replace("B0", "B"),
    lambda band: band.replace("B0", "").replace("B", ""), lambda band: f"{band}_sr",
    lambda band: f"{band}_10m", lambda band: f"S2_{band}.tif",
    lambda band: STAC[L2A.index(band)],
]  # fmt: skip


@given(
    st.permutations(L2A),
    st.lists(st.sampled_from(SPELLINGS), min_size=12, max_size=12),
    st.integers(3, 12),
)
def test_any_order_and_any_spelling_lead_to_the_same_bands(order, spellings, count):
    bands = order[:count]
    labels = [spell(band) for spell, band in zip(spellings, bands, strict=False)]
    found = match_bands(labels, "s2_l2a", "by name", "here")
    assert found.names == tuple(bands)
    assert [L2A[channel] for channel in found.channels] == sorted(bands, key=L2A.index)
    assert [bands[at] for at in found.take] == sorted(bands, key=L2A.index)


def no_pixels():
    raise AssertionError("names were there")


def dark(at):
    """Medians of 13 bands of which one is dark."""
    return lambda: [15.0 if band == at else 900.0 + 50 * band for band in range(13)]


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("at", "order"), [(10, L1C_ORDER), (9, EUROSAT_ORDER)])
def test_thirteen_bands_without_names(at, order, offset):
    levels = [level + offset for level in dark(at)()]
    for labels in ([""] * 13, [f"layer_{i}" for i in range(1, 14)], [str(i) for i in range(1, 14)]):
        assert match_file(labels, "s2_l1c", "here", lambda: levels).names == order
    scaled = [level / 10000 for level in levels]
    assert match_file([""] * 13, "s2_l1c", "here", lambda: scaled).names == order


def test_thirteen_bands_of_which_none_is_dark_are_a_question():
    for levels in (dark(3), lambda: [900.0] * 13, lambda: [0.0] * 13):
        with pytest.raises(PixelError, match=r"^here: 13 bands .*say which with --bands"):
            match_file([""] * 13, "s2_l1c", "here", levels)
    assert match_file([""] * 13, "s2_l1c", "here", dark(3), otherwise=L1C_ORDER).names == L1C_ORDER
    with pytest.raises(PixelError):
        match_file([""] * 13, "s2_l2a", "here", dark(3), otherwise=L1C_ORDER)


@pytest.mark.parametrize(
    ("labels", "modality", "names"),
    [
        ([""] * 12, "s2_l2a", L2A),
        ([""] * 12, "s2_l1c", L2A),
        ([""] * 2, "s1", ("VV", "VH")),
        (["1", "2"], "s1", ("VV", "VH")),
        (["bands"] * 2, "s1", ("VV", "VH")),
        (["stack"] * 12, "s2_l2a", L2A),
        ([f"Band {i}" for i in range(1, 13)], "s2_l2a", L2A),
        ([f"band_{i:02}" for i in range(1, 13)], "s2_l2a", L2A),
        ([f"place.{i}" for i in range(1, 13)], "s2_l2a", L2A),
        (["B01", "", "B03", *[""] * 9], "s2_l2a", L2A),
        (["VH_db", "VV_db"], "s1", ("VH", "VV")),
        (["VV", ""], "s1", ("VV", "VH")),
        (["B02", "B03", "B04", "SCL"], "s2_l2a", ("B02", "B03", "B04", None)),
        (["B01", "B02", "B03", "B04"], "s2_l2a", ("B01", "B02", "B03", "B04")),
    ],
)
def test_files_with_few_or_no_names(labels, modality, names):
    assert match_file(labels, modality, "here", no_pixels).names == names


@pytest.mark.parametrize(
    ("labels", "modality", "why"),
    [
        ([str(i) for i in range(1, 13)], "s2_l2a", "labelled 1 to 12, which may count them"),
        (["b1", "b2", "b3", "b4"], "s2_l2a", "labelled b1 to b4, which may count them"),
        ([f"B{i}" for i in range(1, 13)], "s2_l1c", "which may count them"),
        (["red", "green", "blue", "depth"], "s2_l2a", r"band depth is not understood .*rededge1"),
        (["B02", "B2", "B03"], "s2_l2a", "band B02 occurs 2 times"),
        (["VV", "VH"], "s2_l2a", "none of its bands"),
        (["HH", "HV"], "s1", "none of its bands"),
        (["B02", "", "B04"], "s2_l2a", "3 bands, not 12, without names"),
        (["B02", "", *L2A[2:]], "s2_l2a", "band 2 has no name, others do"),
        ([""] * 11, "s2_l2a", "11 bands, not 12, without names"),
        ([""] * 4, "s2_l1c", "4 bands, not 12 or 13, without names"),
    ],
)
def test_bands_that_cannot_be_told_are_refused(labels, modality, why):
    with pytest.raises(PixelError, match=rf"^here: .*{why}") as caught:
        match_file(labels, modality, "here", no_pixels)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_names_given_by_the_user_come_first():
    found = match_file(["b1", "b2", "b3"], "s2_l2a", "here", no_pixels, ["B04", "-", "nir"])
    assert found.names == ("B04", None, "B08")
    assert "B04=1 B08=3; dropped -=2; missing B01" in found.describe()
    with pytest.raises(PixelError, match="it has 3 bands, 2 were named"):
        check_named(["B04", "B03"], 3, "here")


@pytest.mark.parametrize(
    ("labels", "modality"),
    [(["VH", "VV"], "s1"), (L1C_ORDER, "s2_l1c"), ([""] * 13, "s2_l1c"), (["cirrus"], "s2_l1c")],
)
def test_some_labels_tell_the_modality(labels, modality):
    assert modality_of(labels, "here") == modality


@pytest.mark.parametrize("labels", [L2A, STAC, [""] * 12])
def test_others_do_not(labels):
    with pytest.raises(PixelError, match=r"^here: .*say which with"):
        modality_of(labels, "here")


def test_no_two_common_names_are_one_band():
    for first, second in itertools.combinations(STAC, 2):
        assert canonical(first, "s2_l2a") != canonical(second, "s2_l2a")

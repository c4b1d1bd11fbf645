"""Radar and optical of real places lie on each other, in every layout that has them."""

import tarfile

import cv2
import numpy as np
import pytest

from terrafm.data.rasters.units import to_storage
from terrafm.data.sources.offsets import decide
from terrafm.data.sources.registry import open_source
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
REACH = 8


@pytest.fixture
def bigearthnet(realdata, tmp_path):
    for packed in (realdata / "bigearthnet").glob("*.tar.bz2"):
        with tarfile.open(packed) as file:
            file.extractall(tmp_path, filter="data")
    return tmp_path


def storage_of(source, uri, cell_id):
    """Modality -> band -> storage integers as float."""
    archive = open_source(source, str(uri), ALL, "")
    cell = archive.read(next(ref for ref in archive.cells() if ref.cell_id == cell_id))
    assert not cell.faults
    decisions = decide(cell.products)
    return {
        modality: {
            band: to_storage(pixels, modality, p.nodata, decisions[modality]).astype(np.float64)
            for band, pixels in p.bands.items()
        }
        for modality, p in cell.products.items()
    }


def smooth(pixels):
    return cv2.GaussianBlur(pixels, (0, 0), 2)


def greenness(bands):
    return (bands["B08"] - bands["B04"]) / (bands["B08"] + bands["B04"])


def best_shift(fixed, moving):
    """(correlation, rows, columns) of the shift of `moving` that fits `fixed` best."""
    side = fixed.shape[0]
    inner = fixed[REACH : side - REACH, REACH : side - REACH].ravel()
    found = []
    for rows in range(-REACH, REACH + 1):
        for columns in range(-REACH, REACH + 1):
            part = moving[
                REACH + rows : side - REACH + rows, REACH + columns : side - REACH + columns
            ]
            found.append((float(np.corrcoef(inner, part.ravel())[0, 1]), rows, columns))
    return max(found)


def shore(pixels):
    """Column of the steepest fall from west to east in each of the rows of a lagoon's shore."""
    rows, width = slice(10, 110), 6
    sums = np.cumsum(pixels[rows], axis=1)
    means = (sums[:, width:] - sums[:, :-width]) / width
    falls = means[:, :-width] - means[:, width:]
    return falls[:, 70:130].argmax(axis=1) + 70 + width


def test_the_coast_of_the_brazilian_place_coincides(realdata):
    found = storage_of("geotiff", realdata / "colocated", "282D_485L_3_3")
    edges = {
        "s1": shore(smooth(found["s1"]["VH"])),
        "s2_l1c": shore(greenness(found["s2_l1c"])),
        "s2_l2a": shore(greenness(found["s2_l2a"])),
    }
    # The shore wanders over more columns than the sensors may differ by.
    assert np.ptp(edges["s2_l1c"]) >= 8
    assert np.median(np.abs(edges["s2_l2a"] - edges["s2_l1c"])) == 0
    for optical in ("s2_l1c", "s2_l2a"):
        apart = edges["s1"] - edges[optical]
        # Two pixels are what Sentinel-1 resolves.
        assert abs(np.median(apart)) <= 2
        assert np.mean(np.abs(apart) <= 3) > 0.8
    water = {m: found[m]["B03"] > found[m]["B08"] for m in ("s2_l1c", "s2_l2a")}
    common, either = (op(*water.values()).sum() for op in (np.logical_and, np.logical_or))
    assert common / either > 0.9
    # Water is darker in radar than the marsh, whichever sensor says where it is.
    marsh = greenness(found["s2_l2a"]) > 0.4
    for mask in water.values():
        assert np.median(found["s1"]["VV"][mask]) < np.median(found["s1"]["VV"][marsh]) - 300


@pytest.mark.parametrize(
    ("place", "optical"),
    [("38D_378R_2_3", greenness), ("433D_629L_3_1", greenness), ("609U_541L_3_0", None)],
)
def test_radar_lies_on_optical_in_the_other_places(realdata, place, optical):
    found = storage_of("geotiff", realdata / "colocated", place)
    radar = smooth(found["s1"]["VH"])
    for modality in ("s2_l1c", "s2_l2a"):
        # In snow the frozen river is dark in radar and bright in the near infrared.
        image = optical(found[modality]) if optical else -found[modality]["B08"]
        fit = max(best_shift(radar, smooth(image)), best_shift(radar, smooth(-image)))
        assert fit[0] > 0.4
        assert max(abs(fit[1]), abs(fit[2])) <= 2
    assert best_shift(found["s2_l1c"]["B08"], found["s2_l2a"]["B08"])[1:] == (0, 0)


def test_radar_lies_on_optical_in_ssl4eo_s12(realdata):
    found = storage_of(
        "ssl4eo-s12", realdata / "ssl4eo_s12", "0000200_20200604T054639_20200604T054831_T43RCP"
    )
    fit = best_shift(smooth(found["s1"]["VH"]), smooth(greenness(found["s2_l2a"])))
    assert fit[0] > 0.6
    assert max(abs(fit[1]), abs(fit[2])) <= 2
    assert best_shift(found["s2_l1c"]["B08"], found["s2_l2a"]["B08"])[1:] == (0, 0)
    # Bands of 20 m lie on those of 10 m; those of 60 m do not, by less than one of their pixels.
    wide = cv2.resize(found["s2_l2a"]["B8A"], (264, 264), interpolation=cv2.INTER_LINEAR)
    assert max(map(abs, best_shift(smooth(found["s2_l2a"]["B08"]), smooth(wide))[1:])) <= 1
    wide = cv2.resize(found["s2_l2a"]["B01"], (264, 264), interpolation=cv2.INTER_LINEAR)
    blue = cv2.blur(found["s2_l2a"]["B02"], (7, 7))
    assert max(map(abs, best_shift(blue, wide)[1:])) <= 5


def test_a_lake_of_bigearthnet_is_dark_in_radar_and_optical(bigearthnet):
    found = storage_of("bigearthnet", bigearthnet, "S2B_MSIL2A_20170924T93020_69_24")
    assert set(found) == {"s1", "s2_l2a"}
    fit = best_shift(smooth(found["s1"]["VV"]), smooth(greenness(found["s2_l2a"])))
    assert fit[0] > 0.9
    assert max(abs(fit[1]), abs(fit[2])) <= 2


@pytest.mark.parametrize(
    ("source", "folder", "cell_id"),
    [
        ("geotiff", "colocated", "38D_378R_2_3"),
        ("ssl4eo-s12", "ssl4eo_s12", "0000200_20200604T054639_20200604T054831_T43RCP"),
    ],
)
def test_no_band_is_swapped(realdata, source, folder, cell_id):
    found = storage_of(source, realdata / folder, cell_id)
    names = MODALITIES["s2_l2a"].bands
    for modality in ("s2_l1c", "s2_l2a"):
        small = {
            b: cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA)
            for b, p in found[modality].items()
        }
        alike = np.corrcoef([small[b].ravel() for b in names])
        # Neighbours in the spectrum look alike: near infrared among itself, visible, short wave.
        for one, other in (("B07", "B08"), ("B08", "B8A"), ("B11", "B12"), ("B02", "B03")):
            assert alike[names.index(one), names.index(other)] > 0.9
        means = {band: found[modality][band].mean() for band in names}
        assert means["B04"] < means["B05"] < means["B06"] < means["B07"]
    # Radar: the cross-polarised channel is the weaker one.
    assert found["s1"]["VV"].mean() > found["s1"]["VH"].mean() + 300
    # Only at the top of the atmosphere is violet brighter than green: air scatters it.
    assert found["s2_l1c"]["B01"].mean() > 1.3 * found["s2_l2a"]["B01"].mean()

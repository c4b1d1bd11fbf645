"""Radar beside SAFE products: which files are known, how they are warped, what is refused."""

import shutil

import numpy as np
import pytest
from safe_products import CORNER, write_radar
from safe_sources import L2A, hyp3, only_cell, power, source


def test_radar_on_the_same_grid_is_copied_and_on_another_warped(l2a, tmp_path):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    vv = power(0, 300)
    hyp3(tmp_path / "radar", "20220705T165000", vv, corner=(CORNER[0] - 200, CORNER[1] + 100))
    cell = only_cell(tmp_path)
    np.testing.assert_array_equal(cell.products["s1"].bands["VV"], vv[10:274, 20:284])
    assert cell.products["s1"].time == "2022-07-05T16:50:00+00:00"
    # Half a pixel beside the grid: the mean of four.
    shutil.rmtree(tmp_path / "radar")
    hyp3(tmp_path / "radar", "20220705T165000", vv, corner=(CORNER[0] - 205, CORNER[1] + 105))
    warped = only_cell(tmp_path).products["s1"].bands["VV"]
    at = vv[10:276, 20:286]
    mean = (at[:264, :264] + at[1:265, :264] + at[:264, 1:265] + at[1:265, 1:265]) / 4
    np.testing.assert_allclose(warped, mean, rtol=2e-5)


@pytest.mark.parametrize("kind", ["p", "a", "d"])
def test_radar_in_power_amplitude_and_db_is_warped_as_power(kind, l2a, tmp_path):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    vv = power(1, 300)
    stored = {"p": vv, "a": np.sqrt(vv), "d": 10 * np.log10(vv)}[kind]
    hyp3(tmp_path, "20220705T165000", stored, kind=kind, corner=(CORNER[0] - 205, CORNER[1] + 105))
    warped = only_cell(tmp_path).products["s1"].bands["VV"]
    at = vv[10:276, 20:286]
    mean = (at[:264, :264] + at[1:265, :264] + at[:264, 1:265] + at[1:265, 1:265]) / 4
    np.testing.assert_allclose(warped, mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_rtc/measurement/iw-vv.rtc.tiff",
          "S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_rtc/measurement/iw-vh.rtc.tiff"],
         None),
        (["OPERA_L2_RTC-S1_T069-147170-IW1_20220705T165000Z_20220706T001122Z_S1A_30_v1.0_VV.tif",
          "OPERA_L2_RTC-S1_T069-147170-IW1_20220705T165000Z_20220706T001122Z_S1A_30_v1.0_VH.tif"],
         None),
        (["S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_NR_Cal_TF_TC.tif"], None),
        (["S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_NR_Cal_TF_TC.tif"],
         ["Gamma0_VH", "Gamma0_VV"]),
    ],
    ids=["planetary computer", "opera", "snap", "snap named"],
)  # fmt: skip
def test_radar_is_known_by_the_names_its_makers_give(names, bands, l2a, tmp_path):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    both = np.stack([power(2), power(3, mean=0.02)])
    for number, name in enumerate(names):
        write_radar(tmp_path / name, both if len(names) == 1 else both[number], names=bands)
        if name.endswith("VV.tif"):
            write_radar(tmp_path / name.replace("VV.tif", "ls_map_VV.tif"), both)
    read = only_cell(tmp_path).products["s1"]
    assert read.time == "2022-07-05T16:50:00+00:00"
    order = ["VH", "VV"] if bands else ["VV", "VH"]
    for band, pixels in zip(order, both, strict=True):
        np.testing.assert_array_equal(read.bands[band], pixels)


def test_ascending_and_descending_radar_are_never_mixed(l2a, tmp_path):
    """The pass nearest in time is taken whole; one that measured nothing of the cell is not."""
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    descending, ascending, empty = power(4), power(5), np.full((264, 264), np.nan, np.float32)
    hyp3(tmp_path, "20220705T052000", descending)
    hyp3(tmp_path, "20220707T165000", ascending)
    hyp3(tmp_path, "20220706T165000", empty)
    read = only_cell(tmp_path).products["s1"]
    np.testing.assert_array_equal(read.bands["VV"], descending)
    assert read.time == "2022-07-05T05:20:00+00:00"


@pytest.mark.parametrize("nodata", [0, np.nan, -32768])
def test_what_radar_did_not_measure_is_missing_and_never_spread(nodata, l2a, tmp_path):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    vv = power(6, 300)
    vv[:, :150] = nodata
    hyp3(tmp_path, "20220705T165000", vv, corner=(CORNER[0] - 205, CORNER[1] + 105),
         nodata=nodata)  # fmt: skip
    read = only_cell(tmp_path).products["s1"].bands["VV"]
    assert np.isnan(read[:, :128]).all()
    assert np.isfinite(read[:, 131:]).all()
    assert (read[:, 131:] > 0).all()
    assert np.nanmax(read) < 2


def test_raw_radar_is_refused_with_what_to_run_first(l2a, tmp_path, refused):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    raw = tmp_path / "S1A_IW_GRDH_1SDV_20220705T165000_20220705T165025_043973_053FDE_1A2B.SAFE"
    (raw / "measurement").mkdir(parents=True)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    command = ("ingest", "--source", "safe", "--input", tmp_path, "--output", out)
    line = refused(*command, "--tile-size", 132, "--set", "ingest.workers=0")
    assert "raw Sentinel-1 GRDH product" in line
    assert "gpt with Apply-Orbit-File" in line
    assert source(tmp_path, L2A).cells()

"""Ingest of damaged archives, and one that is killed."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from folders import faults_of, files_of

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError, UsageError

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def damaged_archive(geotiff_archive, geotiff_bytes, place):
    """Eight places, one fault each but for the first and the last."""
    truncated, missing, few, shifted, empty, undefined = (place(i) for i in range(1, 7))
    whole = geotiff_bytes(truncated["S2L2A"])
    truncated["S2L2A"] = whole[: len(whole) // 2]
    del missing["S1RTC"]
    few["S2L1C"] = few["S2L1C"][:11]
    shifted["S1RTC"] = geotiff_bytes(shifted["S1RTC"], corner=(777.0, 5e6))
    empty["S2L1C"][:] = 0
    undefined["S1RTC"][:] = np.nan
    return geotiff_archive(
        {
            "a_good": None,
            "b_truncated": truncated,
            "c_missing": missing,
            "d_few_bands": few,
            "e_shifted": shifted,
            "f_empty": empty,
            "g_undefined": undefined,
            "h_good": None,
        }
    )


def test_bad_input_goes_to_quarantine(damaged_archive, tmp_path):
    config = IngestConfig(max_bad_fraction=0.8)
    out = tmp_path / "out"
    report = ingest("geotiff", str(damaged_archive), str(out), tile_size=96, config=config)
    assert list(Dataset.open(out).tile_ids) == ["a_good_0_0", "h_good_0_0"]
    faults = {q["what"]: (q["modality"], q["why"]) for q in faults_of(out)}
    assert faults["b_truncated"][0] == "s2_l2a"
    assert "cut short" in faults["b_truncated"][1]
    assert faults["c_missing"] == ("s1", "the archive has no s1 for this cell")
    assert faults["d_few_bands"][0] == "s2_l1c"
    assert faults["d_few_bands"][1].startswith("11 bands, not 12 or 13, without names: say which")
    assert faults["e_shifted"][0] == "s1"
    assert "grid does not match" in faults["e_shifted"][1]
    assert faults["f_empty_0_0"] == (
        "s2_l1c",
        "100% of B01 is without a measurement (nodata, NaN or zero)",
    )
    assert faults["g_undefined_0_0"] == (
        "s1",
        "100% of VV is without a measurement (nodata, NaN or zero)",
    )
    assert len(faults) == 6
    assert all(q["quarantined"] and q["where"] for q in faults_of(out))
    assert report.details["quarantine"]["tiles"] == 6


def test_a_fault_in_a_modality_that_is_not_required_costs_only_that(damaged_archive, tmp_path):
    out = tmp_path / "out"
    config = IngestConfig(require_modalities=("s2_l2a",))
    ingest("geotiff", str(damaged_archive), str(out), tile_size=96, config=config)
    dataset = Dataset.open(out)
    assert len(dataset) == 7
    lost = {q["what"] for q in faults_of(out) if q["quarantined"]}
    assert lost == {"b_truncated"}
    rows = {name: row for row, name in enumerate(dataset.tile_ids)}
    assert dataset.available[rows["c_missing_0_0"]].tolist() == [False, True, True]
    assert dataset.available[rows["d_few_bands_0_0"]].tolist() == [True, False, True]


def test_too_many_bad_tiles_fail_the_job(damaged_archive, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TerraFMError, match="6 of 8 tiles are bad") as caught:
        ingest("geotiff", str(damaged_archive), str(out), tile_size=96)
    assert caught.value.exit_code == 1
    assert len(faults_of(out)) == 6
    with pytest.raises(UsageError, match="unfinished"):
        Dataset.open(out)
    # The limit does not change what was made: the same work goes on.
    config = IngestConfig(max_bad_fraction=0.9)
    assert ingest("geotiff", str(damaged_archive), str(out), tile_size=96, config=config).tiles == 2


def test_all_tiles_bad_fail_the_job_at_any_limit(geotiff_archive, place, tmp_path):
    pixels = place()
    pixels["S2L2A"][:] = 0
    archive = geotiff_archive({"a": pixels})
    config = IngestConfig(max_bad_fraction=1.0)
    with pytest.raises(TerraFMError, match="1 of 1 tiles are bad") as caught:
        ingest("geotiff", str(archive), str(tmp_path / "out"), tile_size=96, config=config)
    assert caught.value.exit_code == 1


def test_parquet_cut_short(major_tom_archive, product_bands, worldcover_tile, tmp_path):
    def rows(modality, cells):
        return [
            (
                {"grid_cell": cell, "product_id": f"x_N0400_{cell}", "timestamp": "2022-01-01"},
                product_bands(modality, 0.1 if modality == "s1" else 1500),
            )
            for cell in cells
        ]

    archive = major_tom_archive(
        {
            "Core-S2L2A": rows("s2_l2a", ["a", "b"]),
            "Core-S2L1C": rows("s2_l1c", ["a", "b"]),
            "Core-S1RTC": rows("s1", ["a", "b"]),
        }
    )
    part = archive / "Core-S1RTC/images/part_00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    cover = str(worldcover_tile("N45E015", np.full((900, 900), 10, np.uint8), 34000, 0))
    options = {"worldcover": cover, "tile_size": 48}
    with pytest.raises(TerraFMError, match="8 of 8 tiles are bad"):
        ingest("major-tom", str(archive), str(tmp_path / "all"), **options)
    config = IngestConfig(require_modalities=("s2_l2a", "s2_l1c"), ocean_drop=0.0)
    ingest("major-tom", str(archive), str(tmp_path / "out"), **options, config=config)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.available.tolist() == [[False, True, True]] * 8
    assert (dataset.read_tile(0)["s2_l2a_20m"] == 500).all()
    assert {q["modality"] for q in faults_of(tmp_path / "out")} == {"s1"}


@pytest.mark.slow
def test_killed_and_repeated(tmp_path):
    script = (
        "import sys; from terrafm.data.ingest.job import ingest\n"
        "if __name__ == '__main__':\n"
        "    ingest('synthetic', 'synthetic:cells=10,seed=3,px=480', sys.argv[1], tile_size=240)\n"
    )
    (tmp_path / "run.py").write_text(script)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(killed)])
    deadline = time.monotonic() + 200
    while not list(killed.glob("entries/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()
    for out in (killed, whole):
        ingest("synthetic", "synthetic:cells=10,seed=3,px=480", str(out), tile_size=240)
    assert Dataset.open(killed).fingerprint == Dataset.open(whole).fingerprint
    # A worker that outlived the killed command by a moment may have left a hidden file.
    shards = [
        {k: v for k, v in files_of(o).items() if k.startswith("shards/part")}
        for o in (killed, whole)
    ]
    assert list(shards[0]) == list(shards[1])
    assert [name for name in shards[0] if shards[0][name] != shards[1][name]] == []

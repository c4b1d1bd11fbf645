import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import ray
from rich.console import Console

from terrafm.config import IngestConfig, load_config
from terrafm.data.ingest import ingest
from terrafm.data.inspect import inspect, render
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import TerraFMError, UsageError
from terrafm.ray_runtime import ensure_ray


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ensure_ray(2)
    yield
    ray.shutdown()


def files_of(folder):
    """Content of a dataset by file name, without the entries of unfinished work."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "archive" not in path.parts
    }


def rendered(uri):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(inspect(str(uri), load_config())))
    return console.export_text()


def faults_of(folder):
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_real_places(realdata, tmp_path):
    out = tmp_path / "out"
    steps = []
    report = ingest(
        "geotiff",
        str(realdata / "colocated"),
        str(out),
        tile_size=224,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (report.tiles, report.already_complete) == (4, False)
    assert steps == [(n, 4) for n in range(5)]
    dataset = Dataset.open(out)
    assert dataset.fingerprint == report.fingerprint
    assert list(dataset.tile_ids) == [
        f"{place}_0_0"
        for place in ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1", "609U_541L_3_0")
    ]
    assert dataset.class_counts() == {1: 1, 4: 1, 7: 1, 9: 1}
    assert dataset.legend[7] == "class 7"
    assert dataset.available.all()
    source = GeotiffFolder(str(realdata / "colocated"), ("s1", "s2_l1c", "s2_l2a"))
    for row, ref in enumerate(source.cells()):
        raw = source.read(ref)
        tile = dataset.tile(row)
        stored = dataset.read_tile(row)
        codes, counts = np.unique(raw.land_cover, return_counts=True)
        assert tile["land_cover"] == codes[np.argmax(counts)]
        for name in ("s2_l1c", "s2_l2a"):
            offset = tile["products"][name]["offset"]
            expected = np.stack(list(raw.products[name].bands.values())).astype(int) - offset
            np.testing.assert_array_equal(stored[f"{name}_10m"], np.maximum(expected, 1))
        radar = np.stack(list(raw.products["s1"].bands.values()))
        assert np.abs(stored["s1_10m"] / 100 - radar).max() <= 0.00501
    offsets = {d["offset"]: d["products"] for d in dataset.report["decisions"]["s2_l1c"]}
    assert offsets == {1000: 3, 0: 1}


def test_real_major_tom_cell(realdata, tmp_path, major_tom_archive, worldcover_tile):
    folder = next((realdata / "major_tom/S2L2A/0U/0U_199R").iterdir())
    bands = {path.stem: path.read_bytes() for path in folder.glob("*.tif")}
    metadata = {
        "grid_cell": "0U_199R",
        "product_id": folder.name,
        "timestamp": "2022-07-06T08:56:11.000000",
    }
    archive = major_tom_archive({"Core-S2L2A": [(metadata, bands)]})
    # The cell lies at 17.87 E, 0.05 N.
    trees = np.full((2000, 3000), 10, np.uint8)
    trees[:, 1500:] = 30
    cover = worldcover_tile("N00E015", trees, row=34000, column=33000)
    report = ingest(
        "major-tom",
        str(archive),
        str(tmp_path / "out"),
        worldcover=str(cover),
        config=IngestConfig(require_modalities=("s2_l2a",)),
    )
    assert report.tiles == 4
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.modalities == ("s2_l2a",)
    assert [g.name for g in dataset.groups] == ["s2_l2a_10m", "s2_l2a_20m", "s2_l2a_60m"]
    tile = dataset.tile(0)
    assert tile["tile_id"] == "0U_199R_0_0"
    assert tile["products"]["s2_l2a"]["offset"] == 1000
    assert tile["products"]["s2_l2a"]["offset_reason"] == "baseline N0400"
    assert (tile["latitude"], tile["longitude"]) == pytest.approx((0.07, 17.9), abs=0.05)
    assert set(dataset.class_counts()) <= {10, 30}
    source_pixels = dataset.read_tile(1)["s2_l2a_60m"]
    with rasterio.open(folder / "B09.tif") as file:
        expected = file.read(1)[:89, 89:].astype(int) - 1000
    np.testing.assert_array_equal(source_pixels[1], expected)
    names = {g.name: g.shape[1:] for g in dataset.groups}
    assert names == {"s2_l2a_10m": (534, 534), "s2_l2a_20m": (267, 267), "s2_l2a_60m": (89, 89)}


def test_bytes_depend_on_neither_readers_nor_order(geotiff_archive, tmp_path):
    archive = geotiff_archive({f"p{i}": None for i in range(6)})
    fingerprints = set()
    for workers in (1, 2):
        config = IngestConfig(workers=workers, tiles_per_shard=8)
        out = tmp_path / f"out{workers}"
        fingerprints.add(
            ingest("geotiff", str(archive), str(out), tile_size=48, config=config).fingerprint
        )
    assert len(fingerprints) == 1
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


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
    assert faults["d_few_bands"] == ("s2_l1c", "11 bands, not 12 or 13")
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


def test_a_complete_dataset_is_left_alone(geotiff_archive, tmp_path, monkeypatch):
    archive = geotiff_archive({"a": None, "b": None})
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    first = ingest("geotiff", archive.name, out.name, tile_size=48)
    before = files_of(out)
    again = ingest("geotiff", str(archive), str(out), tile_size=48)
    assert again.already_complete
    assert again.fingerprint == first.fingerprint
    with pytest.raises(UsageError, match="tile_size was 48, now 96"):
        ingest("geotiff", str(archive), str(out), tile_size=96)
    (archive / "S1RTC/b.tif").unlink()
    with pytest.raises(UsageError, match="the archive has changed"):
        ingest("geotiff", str(archive), str(out), tile_size=48)
    assert files_of(out) == before


def test_an_unfinished_ingest_goes_on(geotiff_archive, tmp_path):
    archive = geotiff_archive({f"p{i}": None for i in range(6)})
    out = tmp_path / "out"
    ingest("geotiff", str(archive), str(out), tile_size=48)
    before = files_of(out)
    # What a kill leaves: no manifest, some shards without an entry.
    for name in ("manifest.json", "manifest-1.json", "index-1.parquet", "quarantine.jsonl"):
        (out / name).unlink()
    (out / "entries/part-00003.arrow").unlink()
    (out / "shards/part-00004.parquet").write_bytes(b"half")
    kept = out / "shards/part-00001.parquet"
    stamp = kept.stat().st_mtime_ns
    steps = []
    ingest(
        "geotiff", str(archive), str(out), tile_size=48, progress=lambda *step: steps.append(step)
    )
    assert steps == [(4, 6), (5, 6), (6, 6)]
    assert kept.stat().st_mtime_ns == stamp
    assert files_of(out) == before


def test_leftovers_of_other_settings_are_replaced(geotiff_archive, tmp_path):
    archive = geotiff_archive({f"p{i}": None for i in range(4)})
    out = tmp_path / "out"
    ingest("geotiff", str(archive), str(out), tile_size=48)
    for path in out.glob("manifest*"):
        path.unlink()
    config = IngestConfig(tiles_per_shard=2)
    ingest("geotiff", str(archive), str(out), tile_size=96, config=config)
    clean = tmp_path / "clean"
    ingest("geotiff", str(archive), str(clean), tile_size=96, config=config)
    shards = {k: v for k, v in files_of(out).items() if k.startswith("shards/")}
    assert shards == {k: v for k, v in files_of(clean).items() if k.startswith("shards/")}
    assert Dataset.open(out).fingerprint == Dataset.open(clean).fingerprint


@pytest.mark.parametrize(
    ("source", "input_uri", "options", "message"),
    [
        ("geotiff", "missing", {}, "does not exist"),
        ("major-tom", "missing", {}, "does not exist"),
        ("geotiff", "", {}, "has no folder of"),
        ("major-tom", "", {}, "holds no Major-TOM dataset"),
        ("sentinel", "", {}, "no source named 'sentinel'; sources: geotiff, major-tom"),
        ("geotiff", "archive", {"modalities": ("s1", "s3")}, "unknown modality s3"),
        ("geotiff", "archive", {"tile_size": 200}, "smaller than a tile"),
        ("synthetic", "synthetic:cels=2", {}, "unknown key 'cels'"),
    ],
)
def test_wrong_usage(geotiff_archive, tmp_path, source, input_uri, options, message):
    geotiff_archive({"a": None})
    empty = tmp_path / "empty"
    empty.mkdir()
    uri = input_uri if ":" in input_uri else str(tmp_path / input_uri if input_uri else empty)
    options = {"tile_size": 48} | options
    with pytest.raises(UsageError, match=message):
        ingest(source, uri, str(tmp_path / "out"), **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_without_land_cover(geotiff_archive, place, tmp_path):
    pixels = place()
    del pixels["LULC"]
    archive = geotiff_archive({"a": pixels})
    with pytest.raises(UsageError, match=r"WorldCover at .*missing.*--worldcover"):
        ingest(
            "geotiff",
            str(archive),
            str(tmp_path / "out"),
            tile_size=48,
            worldcover=str(tmp_path / "missing"),
        )


def test_real_ssl4eo_s12(realdata, tmp_path):
    cover = str(realdata / "worldcover")
    config = IngestConfig(max_gap_days=15, require_modalities=("s2_l2a",), ocean_drop=0.0)
    source = ("ssl4eo-s12", str(realdata / "ssl4eo_s12"))
    out = tmp_path / "out"
    report = ingest(*source, str(out), worldcover=cover, tile_size=264, config=config)
    dataset = Dataset.open(out)
    assert list(dataset.tile_ids) == [
        "0000200_20200604T054639_20200604T054831_T43RCP_0_0",
        "0000200_20200813T054639_20200813T054952_T43RCP_0_0",
    ]
    # The second date's nearest radar scene is three weeks away.
    assert dataset.available.tolist() == [[True, True, True], [False, True, True]]
    assert report.details["products_left_out"] == {"s1": {"gap": 1}}
    assert report.details["archive"]["pairing"]["s1"]["within_30_days"] == 2
    tile = dataset.tile(0)
    assert tile["crs"] == "EPSG:4326"
    assert (tile["latitude"], tile["longitude"]) == pytest.approx((30.46396, 73.30593), abs=1e-4)
    assert tile["products"]["s2_l1c"]["offset_reason"] == "baseline N0209"
    assert tile["products"]["s1"]["days_from_anchor"] == pytest.approx(2.8065, abs=1e-3)
    assert dataset.tile(1)["products"]["s2_l1c"]["cloud_cover"] == pytest.approx(9.9194)
    folder = realdata / "ssl4eo_s12/s2a/0000200/20200813T054639_20200813T054952_T43RCP"
    with rasterio.open(folder / "B8A.tif") as file:
        bands = dict(zip(dataset.groups[-2].bands, dataset.read_tile(1)["s2_l2a_20m"], strict=True))
        np.testing.assert_array_equal(bands["B8A"], file.read(1))
    clear = config.model_copy(update={"max_cloud_cover": 5.0})
    report = ingest(*source, str(tmp_path / "clear"), worldcover=cover, tile_size=264, config=clear)
    assert report.details["products_left_out"] == {"s1": {"gap": 1}, "s2_l1c": {"clouds": 1}}
    assert "1 too far in time from the anchor" in rendered(tmp_path / "clear")
    assert "1 too cloudy" in rendered(tmp_path / "clear")
    strict = config.model_copy(update={"require_modalities": ("s1", "s2_l2a")})
    report = ingest(*source, str(tmp_path / "gap"), worldcover=cover, tile_size=264, config=strict)
    assert (report.tiles, report.details["selection"]["tiles_over_limits"]) == (1, 1)
    assert report.details["quarantine"]["faults"] == 0


def test_real_bigearthnet(realdata, tmp_path):
    archive = tmp_path / "archive"
    with pytest.raises(UsageError, match=r"unpack BigEarthNet-S1-Example\.tar\.bz2 first"):
        ingest("bigearthnet", str(realdata / "bigearthnet"), str(tmp_path / "packed"))
    for packed in (realdata / "bigearthnet").glob("*.tar.bz2"):
        with tarfile.open(packed) as file:
            file.extractall(archive, filter="data")
    out = tmp_path / "out"
    cover = str(realdata / "worldcover")
    config = IngestConfig(ocean_drop=0.0)
    ingest("bigearthnet", str(archive), str(out), worldcover=cover, tile_size=120, config=config)
    dataset = Dataset.open(out)
    assert len(dataset) == 6
    assert dataset.modalities == ("s1", "s2_l2a")
    assert dataset.available.all()
    row = list(dataset.tile_ids).index("S2A_MSIL2A_20170617T113321_4_55_0_0")
    tile = dataset.tile(row)
    assert tile["products"]["s1"]["product_id"].startswith("S1A_IW_GRDH_1SDV_20170617T064724")
    assert tile["products"]["s1"]["input_unit"] == "dB"
    patch = archive / "BigEarthNet-S2-Example/S2A_MSIL2A_20170617T113321_4_55"
    with rasterio.open(patch / f"{patch.name}_B12.tif") as file:
        np.testing.assert_array_equal(dataset.read_tile(row)["s2_l2a_20m"][-1], file.read(1))
    faults = config.model_copy(update={"require_modalities": ("s2_l2a",)})
    (patch / f"{patch.name}_B12.tif").unlink()
    lost = tmp_path / "lost"
    ingest("bigearthnet", str(archive), str(lost), worldcover=cover, tile_size=120, config=faults)
    assert [(q["what"], q["modality"]) for q in faults_of(lost)] == [(patch.name, "s2_l2a")]


@pytest.fixture
def uneven_archive(geotiff_archive, place):
    """24 tiles in classes 1, 2 and 3: sixteen, seven and one."""
    places = {}
    for i in range(6):
        pixels = place(i)
        pixels["LULC"][:] = 1 if i < 4 else 2
        if i == 5:
            pixels["LULC"][0, 48:, 48:] = 3
        places[f"p{i}"] = pixels
    return str(geotiff_archive(places))


def test_at_most_so_many_tiles_spread_over_classes(uneven_archive, tmp_path):
    reports = {}
    for workers in (1, 2):
        config = IngestConfig(max_tiles=9, workers=workers, tiles_per_shard=8)
        out = tmp_path / f"out{workers}"
        reports[workers] = ingest("geotiff", uneven_archive, str(out), tile_size=48, config=config)
    assert reports[1].fingerprint == reports[2].fingerprint
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")
    dataset = Dataset.open(out)
    assert dataset.class_counts() == {1: 4, 2: 4, 3: 1}
    dropped = reports[1].details["max_tiles"]
    assert dropped["tiles_before"] == 24
    assert dropped["tiles_dropped"] == 15
    assert dropped["class_counts_before"] == {"1": 16, "2": 7, "3": 1}
    # No dead bytes: the shards hold the tiles of the index and no others.
    whole = tmp_path / "whole"
    ingest("geotiff", uneven_archive, str(whole), tile_size=48)
    everything = Dataset.open(whole)
    rows = {name: row for row, name in enumerate(everything.tile_ids)}
    stored = 0
    for shard in (out / "shards").iterdir():
        stored += pq.read_metadata(shard).num_rows
    assert stored == len(dataset) == 9
    # What stays is untouched, and the statistics are of what stays.
    kept = [dataset.read_tile(row)["s2_l2a_10m"] for row in range(9)]
    for row, pixels in enumerate(kept):
        before = everything.read_tile(rows[dataset.tile_ids[row]])["s2_l2a_10m"]
        np.testing.assert_array_equal(pixels, before)
        assert dataset.tile(row) == everything.tile(rows[dataset.tile_ids[row]]) | {
            "shard": dataset.tile(row)["shard"]
        }
    mean = np.mean([pixels[2].mean() for pixels in kept]) / 10000
    assert dataset.statistics["s2_l2a"]["mean"][2] == pytest.approx(mean)
    shown = rendered(out)
    assert "15 of 24 tiles dropped, spread over land_cover, climate, region" in shown
    assert "before max_tiles" in shown
    assert "60N..30N 0E..30E: 9" in shown
    # Repeated after a kill in the second pass: the same bytes.
    for path in [*out.glob("manifest*"), *out.glob("shards/*-thinned*")]:
        path.unlink()
    again = ingest("geotiff", uneven_archive, str(out), tile_size=48, config=config)
    assert again.fingerprint == reports[1].fingerprint


def test_climate_zones_and_a_legend(uneven_archive, tmp_path):
    zones = tmp_path / "zones.tif"
    with rasterio.open(
        zones,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=180,
        width=360,
        crs="EPSG:4326",
        transform=rasterio.Affine(1, 0, -180, 0, -1, 90),
    ) as file:
        file.write(np.full((1, 180, 360), 14, np.uint8))
    legend = tmp_path / "legend.yaml"
    legend.write_text("codes: {1: 10, 2: 80, 3: 30}")
    out = tmp_path / "out"
    options = {"tile_size": 48, "climate": str(zones), "legend_uri": str(legend)}
    ingest("geotiff", uneven_archive, str(out), **options)
    dataset = Dataset.open(out)
    assert "14: 24" in rendered(out)
    assert set(dataset.climate) == {14}
    assert dataset.class_counts() == {10: 16, 30: 1, 80: 7}
    assert dataset.legend == {10: "tree cover", 30: "grassland", 80: "permanent water"}
    assert dataset.report["selection"]["water_only"] == 7
    legend.write_text("codes: {1: 10, 2: 80}")
    with pytest.raises(UsageError, match="legend was"):
        ingest("geotiff", uneven_archive, str(out), **options)
    with pytest.raises(UsageError, match=r"land-cover code 3 of cell p5 \(2304 pixels\)") as caught:
        ingest("geotiff", uneven_archive, str(tmp_path / "other"), **options)
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_killed_and_repeated(tmp_path):
    script = (
        "import sys; from terrafm.data.ingest import ingest\n"
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

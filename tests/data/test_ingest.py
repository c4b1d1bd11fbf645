"""Ingest: the same bytes whatever happened, and only what was asked for."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from folders import files_of, rendered

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError

pytestmark = pytest.mark.usefixtures("local_ray")


def test_bytes_depend_on_neither_readers_nor_order(geotiff_archive, tmp_path):
    archive = geotiff_archive({f"p{i}": None for i in range(6)})
    fingerprints = set()
    for workers in (0, 1, 2):
        config = IngestConfig(workers=workers, tiles_per_shard=8)
        out = tmp_path / f"out{workers}"
        fingerprints.add(
            ingest("geotiff", str(archive), str(out), tile_size=48, config=config).fingerprint
        )
    assert len(fingerprints) == 1
    for workers in (0, 1):
        assert files_of(tmp_path / f"out{workers}") == files_of(tmp_path / "out2")


def test_without_readers_no_ray_is_asked(geotiff_archive, tmp_path, run, monkeypatch):
    monkeypatch.setattr("terrafm.ray.runtime.ensure_ray", None)
    archive = geotiff_archive({"a": None, "b": None})
    words = ["--source", "geotiff", "--input", archive, "--tile-size", "48"]
    none = ["--set", "ingest.workers=0"]
    code, out, errors = run("ingest", *words, "--output", tmp_path / "out", *none)
    assert code == 0, errors
    assert "8 tiles" in out


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
    with pytest.raises(UsageError, match=r"of --worldcover .*missing does not exist"):
        ingest(
            "geotiff",
            str(archive),
            str(tmp_path / "out"),
            tile_size=48,
            worldcover=str(tmp_path / "missing"),
        )


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

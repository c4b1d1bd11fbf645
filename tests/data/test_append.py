"""More tiles are a new version; what was there stays as it was, byte for byte."""

import json
import shutil

import numpy as np
import pytest
import rasterio
from folders import files_of, rendered

from terrafm.config import IngestConfig
from terrafm.data.ingest import append as append_module
from terrafm.data.ingest.adopt import Adoption, record_of
from terrafm.data.ingest.append import append
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.manifest import list_versions
from terrafm.data.shards.writer import write_shard
from terrafm.errors import TerraFMError, UsageError

SMALL = {"tile_size": 48, "config": IngestConfig(tiles_per_shard=8)}


pytestmark = pytest.mark.usefixtures("local_ray")


def pixels(dataset):
    return {tile: dataset.read_tile(row) for row, tile in enumerate(dataset.tile_ids)}


def some(archive, folder, names):
    """An archive of some places of another."""
    for sensor in archive.iterdir():
        (folder / sensor.name).mkdir(parents=True)
        for name in names:
            shutil.copy(sensor / f"{name}.tif", folder / sensor.name)
    return folder


@pytest.fixture
def places(geotiff_archive, tmp_path):
    """All six places, and archives of the first four and of the last three: one is in both."""
    whole = geotiff_archive({f"p{i}": None for i in range(6)})
    first = some(whole, tmp_path / "first", [f"p{i}" for i in range(4)])
    second = some(whole, tmp_path / "second", [f"p{i}" for i in range(3, 6)])
    return whole, first, second


def test_appending_equals_one_ingest_of_everything(places, tmp_path):
    whole, first, second = places
    out = tmp_path / "out"
    base = ingest("geotiff", str(first), str(out), **SMALL)
    before, old_pixels = files_of(out), pixels(Dataset.open(out))
    report = append("geotiff", str(second), str(out), **SMALL)
    together = ingest("geotiff", str(whole), str(tmp_path / "together"), **SMALL)
    # Statistics, class counts, pixels, places: nothing tells them apart but the layout.
    assert report.fingerprint == together.fingerprint != base.fingerprint
    assert report.tiles == together.tiles == 24
    assert list_versions(str(out)) == [1, 2]
    after = files_of(out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"manifest.json"}
    assert not (out / "appending").exists()
    old = Dataset.open(out, fingerprint=base.fingerprint)
    assert old.manifest.version == 1
    for tile, arrays in pixels(old).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, old_pixels[tile][name])
    (appended,) = Dataset.open(out).report["appended"]
    assert (appended["tiles"], appended["tiles_already_there"]) == (8, 4)
    assert Dataset.open(out).report["selection"]["tiles"] == 24
    with pytest.raises(UsageError, match="no version with fingerprint 00000000"):
        Dataset.open(out, fingerprint="0" * 64)


def test_a_shard_that_is_half_known_is_written_without_the_known_half(places, tmp_path):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    staged_uri = str(tmp_path / "staged")
    ingest("geotiff", str(second), staged_uri, **SMALL)
    staged = Dataset.open(staged_uri)
    adoption = Adoption(Dataset.open(out), staged, "v2")
    location = staged.locations(range(len(staged)))
    rows = staged.index.to_pylist()
    records = [
        record_of(row, staged.reader.read(location.slice(i, 1))[0]) for i, row in enumerate(rows)
    ]
    # Ingest gives small archives one shard for each cell: here are all three cells in one.
    merged = write_shard(staged_uri, "merged", records, staged.groups, {"tally": {}})
    taken = adoption.take(merged)
    assert (adoption.fresh, adoption.known) == (8, 4)
    assert taken.rows.num_rows == 8
    sums = {}
    for entry_name in ("part-00001", "part-00002"):
        entry = ShardEntry.read(staged_uri, entry_name)
        for modality, bands in entry.extra["tally"]["sums"].items():
            for band, values in bands.items():
                old = sums.setdefault(modality, {}).get(band, [0, 0, 0])
                sums[modality][band] = [a + b for a, b in zip(old, values, strict=True)]
    assert taken.extra["tally"]["sums"] == sums
    held = [ShardEntry.read(str(out), f"part-{i:05d}") for i in range(4)]
    base = Dataset.open(out)
    commit_dataset(
        str(out),
        [*held, taken],
        tile_size=48,
        gsd=10,
        groups=base.groups,
        statistics=base.statistics,
        legend=base.legend,
        report={},
    )
    both = Dataset.open(out)
    assert len(both) == 24
    expected = pixels(staged)
    for row, tile in enumerate(both.tile_ids):
        if tile in expected:
            for name, array in both.read_tile(row).items():
                np.testing.assert_array_equal(array, expected[tile][name])


def test_a_grown_archive_is_given_whole_and_an_equal_one_changes_nothing(places, tmp_path):
    whole, first, _ = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    report = append("geotiff", str(whole), str(out), **SMALL)
    assert (report.tiles, report.already_complete) == (24, False)
    # What was there before is not counted twice.
    counts = Dataset.open(out).report["selection"]
    assert (counts["cells"], counts["tiles_seen"], counts["tiles"]) == (6, 24, 24)
    assert "version 2" in rendered(out)
    before = files_of(out)
    again = append("geotiff", str(whole), str(out), **SMALL)
    assert (again.tiles, again.already_complete) == (24, True)
    assert files_of(out) == before
    # The first ingest is still what it was: complete.
    assert ingest("geotiff", str(first), str(out), **SMALL).already_complete


def test_an_interrupted_append_is_invisible_and_goes_on(places, tmp_path, monkeypatch):
    _, first, second = places
    out, clean = tmp_path / "out", tmp_path / "clean"
    for folder in (out, clean):
        ingest("geotiff", str(first), str(folder), **SMALL)
    append("geotiff", str(second), str(clean), **SMALL)
    before = Dataset.open(out).fingerprint

    def stop(*_, **__):
        raise KeyboardInterrupt

    for name in ("commit_dataset", "remove_staged"):
        with monkeypatch.context() as patch:
            patch.setattr(append_module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                append("geotiff", str(second), str(out), **SMALL)
        if name == "commit_dataset":
            assert Dataset.open(out).fingerprint == before
            assert list_versions(str(out)) == [1]
    report = append("geotiff", str(second), str(out), **SMALL)
    assert report.fingerprint == Dataset.open(clean).fingerprint
    assert files_of(out) == files_of(clean)


def test_a_tile_of_other_content_is_refused_by_name(places, tmp_path):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    before = files_of(out)
    whole = (second / "S2L2A" / "p3.tif").read_bytes()
    with rasterio.open(second / "S2L2A" / "p3.tif", "r+") as file:
        changed = file.read(3)
        changed[60, 20] += 1
        file.write(changed, 3)
    with pytest.raises(TerraFMError, match=r"tile p3_1_0 is in .*another s2_l2a_10m\.checksum"):
        append("geotiff", str(second), str(out), **SMALL)
    assert {k: v for k, v in files_of(out).items() if k in before} == before
    assert Dataset.open(out).manifest.version == 1
    # Put right, it goes in; nothing of the first attempt is left.
    (second / "S2L2A" / "p3.tif").write_bytes(whole)
    assert append("geotiff", str(second), str(out), **SMALL).tiles == 24
    assert {k for k in files_of(out) if "v2-" in k} == {
        f"{folder}/v2-part-{i:05d}.{kind}"
        for folder, kind in (("shards", "parquet"), ("entries", "arrow"))
        for i in (1, 2)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_size": 96}, r"tiles of 96 px .*its tiles have 48 px; give --tile-size 48"),
        (
            {"config": IngestConfig(codec="pcodec")},
            r"cells of pcodec:level8 .*give --set ingest\.codec=blosc2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(places, tmp_path, change, message):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    before = files_of(out)
    with pytest.raises(UsageError, match=message):
        append("geotiff", str(second), str(out), **(SMALL | change))
    assert files_of(out) == before


def test_other_bands_and_legends_are_refused(places, place, geotiff_archive, tmp_path):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), modalities=("s1",), **SMALL)
    with pytest.raises(UsageError, match=r"archive has s2_l1c_10m .*the dataset has no such cells"):
        append("geotiff", str(second), str(out), **SMALL)
    sea = place(7)
    sea["LULC"][:] = 80
    other = geotiff_archive({"q": sea}, folder="other")
    with pytest.raises(UsageError, match="two legends"):
        append("geotiff", str(other), str(out), modalities=("s1",), **SMALL)
    assert Dataset.open(out).manifest.version == 1


def test_an_archive_without_a_sensor_can_be_added(places, tmp_path):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    config = IngestConfig(require_modalities=("s2_l2a",), tiles_per_shard=8)
    shutil.rmtree(second / "S1RTC")
    for sensor in ("S2L1C", "S2L2A", "LULC"):
        (second / sensor / "p3.tif").unlink()
    append("geotiff", str(second), str(out), tile_size=48, config=config)
    dataset = Dataset.open(out)
    assert len(dataset) == 24
    assert dataset.available[:, 0].tolist() == [True] * 16 + [False] * 8
    assert "s1_10m" not in dataset.read_tile(23)


def test_without_a_dataset_there_is_nothing_to_append_to(places, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        append("geotiff", str(places[1]), str(tmp_path / "out"), **SMALL)


def test_the_entries_of_an_ingest_are_needed(places, tmp_path):
    _, first, second = places
    out = tmp_path / "out"
    ingest("geotiff", str(first), str(out), **SMALL)
    (out / "entries" / "part-00001.arrow").unlink()
    with pytest.raises(UsageError, match=r"entries/part-00001\.arrow, which ingest wrote, is mis"):
        append("geotiff", str(second), str(out), **SMALL)
    assert json.loads((out / "manifest.json").read_text())["version"] == 1

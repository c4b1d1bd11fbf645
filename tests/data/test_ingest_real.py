"""Ingest of real satellite data, as each archive publishes it."""

import tarfile

import numpy as np
import pytest
import rasterio
from folders import faults_of, rendered

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import UsageError

pytestmark = pytest.mark.usefixtures("local_ray")


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


def test_real_ssl4eo_s12(realdata, tmp_path, worldcover_tile):
    # A tile of nothing but sea.
    cover = str(worldcover_tile("N30E072"))
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


def test_real_bigearthnet(realdata, tmp_path, worldcover_tile):
    archive = tmp_path / "archive"
    with pytest.raises(UsageError, match=r"unpack BigEarthNet-S1-Example\.tar\.bz2 first"):
        ingest("bigearthnet", str(realdata / "bigearthnet"), str(tmp_path / "packed"))
    for packed in (realdata / "bigearthnet").glob("*.tar.bz2"):
        with tarfile.open(packed) as file:
            file.extractall(archive, filter="data")
    out = tmp_path / "out"
    # Austria, Ireland, Portugal, Finland.
    for code in ("N48E012", "N51W009", "N39W009", "N60E030"):
        cover = str(worldcover_tile(code))
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

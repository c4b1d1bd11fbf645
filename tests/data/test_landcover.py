import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from folders import faults_of, rendered
from pyproj import Transformer
from rasterio.warp import Resampling, reproject

from terrafm.config import IngestConfig
from terrafm.data.archive import BadCellError
from terrafm.data.ingest import job as ingest_module
from terrafm.data.land import landcover
from terrafm.data.land.landcover import WorldCover, histogram, legend, majority
from terrafm.data.land.selection import NO_CLASS
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.folders import misspelt_land_cover
from terrafm.errors import UsageError
from terrafm.storage import faults


def grid_at(longitude, latitude, epsg, size=100):
    """A grid of 10 m around a place."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude, latitude)
    half = 10 * (size // 2)
    transform = (10.0, 0.0, round(x) - half, 0.0, -10.0, round(y) + half)
    return f"EPSG:{epsg}", transform, (size, size)


def degrees_of(crs, transform, shape):
    a, _, c, _, e, f = transform
    x, y = np.meshgrid(c + a * (np.arange(shape[1]) + 0.5), f + e * (np.arange(shape[0]) + 0.5))
    return Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)


def test_histogram_and_majority():
    counts = histogram(np.array([[10, 10, 30], [30, 200, 0]], np.uint8))
    assert counts == {0: 1, 10: 2, 30: 2, 200: 1}
    assert majority(counts) == 10


def test_legend_is_worldcovers_only_where_all_codes_are():
    assert legend({10, 80}) == {10: "tree cover", 80: "permanent water"}
    assert legend({10, 7}) == {7: "class 7", 10: "class 10"}


def test_codes_equal_an_independent_reprojection_on_a_real_tile(realdata):
    folder = realdata / "worldcover"
    path = next(folder.glob("*N00E006*.tif"))
    crs, transform, shape = grid_at(6.65, 0.4, 32632, 600)
    codes = WorldCover(str(folder)).codes(crs, transform, shape)
    expected = np.zeros(shape, np.uint8)
    with rasterio.open(path) as dataset:
        reproject(
            rasterio.band(dataset, 1),
            expected,
            dst_transform=rasterio.Affine(*transform),
            dst_crs=crs,
            resampling=Resampling.nearest,
            tolerance=0,
        )
    expected[expected == 0] = 80
    assert {10, 80} <= set(np.unique(codes))
    # A pixel centre on a border of two WorldCover pixels may fall on either side.
    assert np.mean(codes == expected) > 0.999


def test_across_tile_borders(worldcover_tile):
    # 6 E, 3 N is the corner of four tiles; one is missing, which has the islands of Sao Tome.
    block = np.full((200, 200), 1, np.uint8)
    folder = worldcover_tile("N03E003", block * 10, row=36000 - 200, column=36000 - 200)
    worldcover_tile("N03E006", block * 30, row=36000 - 200, column=0)
    worldcover_tile("N00E003", block * 40, row=0, column=36000 - 200)
    where = grid_at(6.0, 3.0, 32631)
    codes = WorldCover(str(folder)).codes(*where)
    longitude, latitude = degrees_of(*where)
    expected = np.where(
        latitude > 3, np.where(longitude < 6, 10, 30), np.where(longitude < 6, 40, NO_CLASS)
    )
    assert set(np.unique(codes)) == {10, 30, 40, NO_CLASS}
    assert WorldCover(str(folder)).lacking(*where) == ("N00E006",)
    assert histogram(codes) == {c: int((codes == c).sum()) for c in (10, 30, 40)}
    np.testing.assert_array_equal(codes, expected)


def test_across_the_antimeridian(worldcover_tile):
    block = np.full((400, 400), 1, np.uint8)
    folder = worldcover_tile("S18E177", block * 10, row=12000 - 200, column=36000 - 400)
    worldcover_tile("S18W180", block * 30, row=12000 - 200, column=0)
    where = grid_at(179.9999, -16.0, 32760)
    codes = WorldCover(str(folder)).codes(*where)
    longitude, _ = degrees_of(*where)
    assert set(np.unique(codes)) == {10, 30}
    np.testing.assert_array_equal(codes, np.where(longitude > 0, 10, 30))


def test_nodata_and_tiles_without_land_are_sea(worldcover_tile):
    cover = pickle.loads(pickle.dumps(WorldCover(str(worldcover_tile("N00E006")))))
    assert histogram(cover.codes(*grid_at(7.5, 1.5, 32632))) == {80: 10000}
    assert histogram(cover.codes(*grid_at(-120.5, 31.5, 32610))) == {80: 10000}


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg", "lacking"),
    [
        (16.3, 46.9, 32633, "N45E015"),
        (-157.9, 21.4, 32604, "N21W159"),
        (179.0, -16.5, 32760, "S18E177"),
        (-179.9, 71.0, 32601, "N69W180"),
        (-25.4, 83.4, 3413, "N81W027"),
        (-36.5, -54.3, 32724, "S57W039"),
        (-12.3, -37.1, 32728, "S39W015"),
        (1.0, -76.0, 3031, "S78E000"),
        (1.0, -89.5, 3031, "S90E000"),
        (10.0, 89.0, 3413, None),
        (-36.0, 45.5, 32624, None),
        (-140.0, 10.0, 32607, None),
        (80.0, -30.0, 32744, None),
    ],
)
def test_land_is_told_from_sea_without_its_tile(
    worldcover_tile, longitude, latitude, epsg, lacking
):
    cover = WorldCover(str(worldcover_tile("N00E006")))
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude, latitude)
    where = f"EPSG:{epsg}", (10.0, 0.0, x, 0.0, -10.0, y), (1, 1)
    assert cover.lacking(*where) == (() if lacking is None else (lacking,))
    assert cover.codes(*where).item() == (80 if lacking is None else NO_CLASS)


def test_a_whole_set_of_tiles_is_the_word_on_what_is_sea(worldcover_tile, monkeypatch):
    monkeypatch.setattr(landcover, "PUBLISHED_TILES", 1)
    cover = WorldCover(str(worldcover_tile("N00E006")))
    assert histogram(cover.codes(*grid_at(16.3, 46.9, 32633))) == {80: 10000}
    # But Antarctica has no tile in any set.
    x, y = Transformer.from_crs(4326, 3031, always_xy=True).transform(1.0, -76.0)
    assert cover.lacking("EPSG:3031", (10.0, 0.0, x, 0.0, -10.0, y), (1, 1)) == ("S78E000",)


def test_names_of_tiles(worldcover_tile):
    folder = worldcover_tile("N00E006", np.full((1, 1), 10, np.uint8))
    tile = next(folder.glob("*.tif"))
    # Left by macOS; an older map of the same place; another suffix.
    (folder / f"._{tile.name}").write_bytes(b"clutter")
    (folder / tile.name.replace("2021_v200", "2020_v100")).write_bytes(b"older")
    cover = WorldCover(str(folder))
    assert cover.codes("EPSG:4326", (1 / 12000, 0, 6, 0, -1 / 12000, 3), (1, 1)).item() == 10
    tile.rename(tile.with_suffix(".TIF"))
    cover = WorldCover(str(folder))
    assert cover.codes("EPSG:4326", (1 / 12000, 0, 6, 0, -1 / 12000, 3), (1, 1)).item() == 10


def test_a_folder_with_letters_outside_ascii(worldcover_tile):
    folder = worldcover_tile("N00E006", np.full((1, 1), 10, np.uint8), folder="Częstochowa 東京 #1")
    cover = WorldCover(str(folder))
    assert cover.codes("EPSG:4326", (1 / 12000, 0, 6, 0, -1 / 12000, 3), (1, 1)).item() == 10


def test_damaged_tile_is_a_fault(worldcover_tile):
    noise = np.random.default_rng(0).integers(10, 100, (2000, 2000), np.uint8)
    folder = worldcover_tile("N00E006", noise, 18000, 18000)
    path = next(folder.glob("*.tif"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadCellError, match="N00E006"):
        WorldCover(str(folder)).codes(*grid_at(7.65, 1.35, 32632))


def test_folders_without_tiles_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"no WorldCover tile in .*--worldcover"):
        WorldCover(str(tmp_path))
    with pytest.raises(UsageError, match=r"cannot reach WorldCover at .*--worldcover"):
        WorldCover(str(tmp_path / "missing"))


def test_an_absent_tile_is_named_before_the_work_and_at_its_end(
    major_tom_archive, product_bands, worldcover_tile, tmp_path, monkeypatch, caplog
):
    def in_process(job, works, workers, progress=None):
        for work in works:
            work.write(job)
        return [job.finished(work) for work in works]

    monkeypatch.setattr(ingest_module, "run_works", in_process)
    rows = [
        ({"grid_cell": cell, "product_id": f"x_N0400_{cell}", "timestamp": "2022-07-06"},
         product_bands("s2_l2a", corner=(left, 5000000.0)))
        for cell, left in (("0U_1R", 500000.0), ("0U_2R", 300000.0))
    ]  # fmt: skip
    archive = major_tom_archive({"Core-S2L2A": rows})
    metadata = archive / "Core-S2L2A/metadata.parquet"
    table = pq.read_table(metadata)
    for name, values in (("centre_lat", [45.14, 45.14]), ("centre_lon", [15.01, 12.46])):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, metadata)
    # The second cell lies in this tile, the first in the one east of it.
    codes = np.full((2000, 2000), 40, np.uint8)
    folder = worldcover_tile("N45E012", codes, row=34000, column=4800)
    config = IngestConfig(require_modalities=("s2_l2a",), workers=1)
    report = ingest_module.ingest(
        "major-tom", str(archive), str(tmp_path / "out"), tile_size=96, config=config,
        worldcover=str(folder), modalities=("s2_l2a",),
    )  # fmt: skip
    assert f"{folder} lacks WorldCover tiles of this archive (N45E015)" in caplog.text
    assert "1 cells lie on WorldCover tiles that are not at hand (N45E015)" in report.render().plain
    assert Dataset.open(report.uri).tile_ids.tolist() == ["0U_2R_0_0"]
    (fault,) = faults_of(tmp_path / "out")
    assert fault["why"] == "no WorldCover tile N45E015 for this cell"
    assert "N45E015: 1 " in rendered(report.uri)


def test_the_public_bucket_is_not_waited_for_as_a_store_of_ones_own(monkeypatch):
    monkeypatch.setitem(landcover._ESA_STORE, "endpoint_url", "http://127.0.0.1:1")
    monkeypatch.setattr(landcover, "_ESA_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(faults, "RETRY_SECONDS", 3600)
    with pytest.raises(UsageError, match=r"cannot reach WorldCover at s3://esa-.*--worldcover"):
        WorldCover()


@pytest.mark.parametrize("name", ["LUCL", "lulcs", "Land_Covers", "world-cove"])
def test_a_folder_that_seems_meant_for_land_cover_is_told(tmp_path, name):
    for folder in ("S2L2A", name, "classes", "notes"):
        (tmp_path / folder).mkdir()
    assert misspelt_land_cover(str(tmp_path)) == f"{tmp_path}/{name}"
    (tmp_path / name).rename(tmp_path / "LULC")
    assert misspelt_land_cover(str(tmp_path)) is None

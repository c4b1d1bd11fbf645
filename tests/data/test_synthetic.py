"""The synthetic Earth: specification, Major-TOM schema, geometry, radiometry, land cover."""

import filecmp
import math
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.io import MemoryFile
from rasterio.warp import Resampling, reproject

from terrafm.data.sources.synthetic import ArchivePaths, SyntheticSpec, write_archive
from terrafm.data.synthetic import optics, radar
from terrafm.data.synthetic.globe import ROWS, columns, footprint, settle
from terrafm.data.synthetic.landscape import BIOMES, MATERIALS, WATER, Landscape, make_landscape
from terrafm.data.synthetic.products import offset
from terrafm.errors import UsageError

SPEC = SyntheticSpec(cells=24, seed=3, px=96)
CODES = {10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100}
NATIVE = {10: 96, 20: 48, 60: 16}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ArchivePaths:
    return write_archive(SPEC, tmp_path_factory.mktemp("archive"), workers=2)


def rows_of(archive: ArchivePaths, folder: str) -> list[tuple[dict, dict]]:
    """(metadata, image columns) of every product."""
    metadata = pq.read_table(archive.archive / folder / "metadata.parquet").to_pylist()
    rows = []
    for row in metadata:
        file = pq.ParquetFile(archive.archive / folder / row["parquet_url"])
        rows.append((row, file.read_row_group(row["parquet_row"]).to_pylist()[0]))
    return rows


def decode(content: bytes) -> tuple[np.ndarray, dict]:
    with MemoryFile(content) as memory, memory.open() as image:
        return image.read(1), dict(image.profile)


def test_specification_is_read() -> None:
    assert SyntheticSpec.parse("synthetic:cells=24,seed=0") == SyntheticSpec(24, 0, 1068, 0.15)
    assert SyntheticSpec.parse("synthetic:px=96, clouds=0.3") == SyntheticSpec(24, 0, 96, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthetic:cels=3", r"unknown key 'cels' \(did you mean cells\?\)"),
        ("synthetic:cells=many", "cells must be a whole number, not 'many'"),
        ("synthetic:cells=2,cells=3", "'cells' is given twice"),
        ("synthetic:cells=0", "cells must be within 1..100000, not 0"),
        ("synthetic:px=100", "px must be a multiple of 6"),
        ("synthetic:clouds=2", "clouds must be within"),
        ("s3://somewhere", "input must be like synthetic:cells=24"),
    ],
)
def test_bad_specifications_name_the_key(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SyntheticSpec.parse(text)


def test_the_same_specification_is_the_same_bytes(archive: ArchivePaths, tmp_path: Path) -> None:
    again = write_archive(SPEC, tmp_path, workers=1).archive
    names = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert len(names) > 6
    same, different, missing = filecmp.cmpfiles(archive.archive, again, names, shallow=False)
    assert not different
    assert not missing
    assert len(same) == len(names)


def test_another_seed_is_another_earth(tmp_path: Path, archive: ArchivePaths) -> None:
    other = write_archive(SyntheticSpec(cells=2, seed=4, px=96), tmp_path)
    first = pq.read_table(other.archive / "Core-S2L2A/metadata.parquet")["grid_cell"].to_pylist()
    ours = pq.read_table(archive.archive / "Core-S2L2A/metadata.parquet")["grid_cell"].to_pylist()
    assert not set(first) & set(ours)


@pytest.mark.parametrize(
    ("folder", "bands"),
    [
        ("Core-S2L2A", [b for b in optics.BANDS if b != "B10"]),
        ("Core-S2L1C", list(optics.BANDS)),
        ("Core-S1RTC", ["vv", "vh"]),
    ],
)
def test_rows_have_major_toms_schema(archive: ArchivePaths, folder: str, bands: list[str]) -> None:
    metadata = pq.read_table(archive.archive / folder / "metadata.parquet")
    expected = {
        "grid_cell", "grid_row_u", "grid_col_r", "product_id", "timestamp", "nodata",
        "centre_lat", "centre_lon", "crs", "parquet_url", "parquet_row",
    }  # fmt: skip
    assert expected <= set(metadata.column_names)
    assert ("cloud_cover" in metadata.column_names) == (folder != "Core-S1RTC")
    for row, image in rows_of(archive, folder):
        assert image["product_id"] == row["product_id"]
        assert image["grid_cell"] == row["grid_cell"]
        assert {"product_datetime", "thumbnail", *bands} <= set(image)
        assert image["thumbnail"][:2] == b"\xff\xd8"
        for band in bands:
            pixels, profile = decode(image[band])
            gsd = optics.GSD.get(band, 10)
            assert pixels.shape == (NATIVE[gsd], NATIVE[gsd])
            assert profile["dtype"] == ("float32" if folder == "Core-S1RTC" else "uint16")
            assert profile["compress"] == "lzw"
            assert profile["crs"] == row["crs"]
            assert (profile["transform"].a, profile["transform"].e) == (gsd, -gsd)
    part = pq.ParquetFile(archive.archive / folder / "images/part_00001.parquet")
    assert part.num_row_groups == part.metadata.num_rows


def test_all_products_of_a_cell_share_a_footprint_that_its_name_says(
    archive: ArchivePaths,
) -> None:
    corners: dict[str, set] = {}
    for folder, band in (("Core-S2L2A", "B02"), ("Core-S2L1C", "B01"), ("Core-S1RTC", "vv")):
        for row, image in rows_of(archive, folder):
            transform = decode(image[band])[1]["transform"]
            corners.setdefault(row["grid_cell"], set()).add((row["crs"], transform.c, transform.f))
            up, right = re.fullmatch(r"(\d+[UD])_(\d+[RL])", row["grid_cell"]).groups()
            north = row["grid_row_u"] * 180 / ROWS
            west = row["grid_col_r"] * 360 / columns(row["grid_row_u"])
            assert int(up[:-1]) == abs(row["grid_row_u"])
            assert (right[-1] == "L") == (row["grid_col_r"] < 0)
            assert 0 < row["centre_lat"] - north < 0.0898
            # Turned against the meridians the centre shifts a little, never out of the cell.
            assert 0 < row["centre_lon"] - west < 1.1 * 360 / columns(row["grid_row_u"])
    assert all(len(places) == 1 for places in corners.values())


def test_a_footprint_is_the_one_of_the_real_archive() -> None:
    # 0U_199R of Major-TOM Core: 1068 pixels from easting 819627.36, northing 10340.
    place = footprint(0, 199, 1068)
    assert place.name == "0U_199R"
    assert place.epsg == 32633
    assert place.top == pytest.approx(10340, abs=0.01)
    assert place.left == pytest.approx(819627.364, abs=0.01)
    assert place.mgrs == "33NZA"


@given(row=st.integers(-890, 890), column=st.integers(-600, 600))
def test_cells_lie_north_east_of_their_corner(row: int, column: int) -> None:
    if abs(column) >= columns(row) // 2:
        return
    place = footprint(row, column, 1068)
    x, y = Transformer.from_crs(4326, place.epsg, always_xy=True).transform(
        column * 360 / columns(row), row * 180 / ROWS
    )
    assert place.left == pytest.approx(x - 340, abs=0.01)
    assert place.top - 10680 == pytest.approx(y - 340, abs=0.01)


def test_cells_spread_over_the_globe_and_never_overlap() -> None:
    places = [place for _, place in settle(np.random.default_rng(0), 300, 1068)]
    assert len({place.name for place in places}) == 300
    assert min(p.latitude for p in places) < -30 < 60 < max(p.latitude for p in places)
    assert min(p.longitude for p in places) < -90 < 110 < max(p.longitude for p in places)
    spots = np.array([(p.row * 10, p.longitude * 111 * math.cos(math.radians(p.latitude)))
                      for p in places])  # fmt: skip
    gap = np.abs(spots[:, None] - spots[None]).max(-1) + 1e9 * np.eye(300)
    assert gap.min() > 10.5


def test_baselines_and_offsets_are_mixed_per_product() -> None:
    assert offset("S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419") == 1000
    assert offset("S2A_MSIL1C_20220706T085611_N0510_R007_T33NZA_20220706T153419") == 1000
    assert offset("S2A_MSIL1C_20190706T085611_N0301_R007_T33NZA_20190706T153419") == 0
    assert offset("S2A_MSIL2A_20190706T085611_N9999_R007_T33NZA_20190706T153419") == 0


def test_the_offset_is_in_the_pixels_that_the_baseline_says(archive: ArchivePaths) -> None:
    seen = set()
    for row, image in rows_of(archive, "Core-S2L1C"):
        cirrus, _ = decode(image["B10"])
        dark = np.percentile(cirrus[cirrus > 0], 1)
        add = offset(row["product_id"])
        # Nothing but high cloud is bright in the cirrus band.
        assert add <= dark < add + 700
        seen.add(add)
    assert seen == {0, 1000}


def test_optical_and_radar_are_some_days_apart_and_some_cells_repeat(tmp_path: Path) -> None:
    root = write_archive(SyntheticSpec(cells=60, seed=1, px=48), tmp_path).archive
    metadata = {
        name: pq.read_table(root / name / "metadata.parquet").to_pylist()
        for name in ("Core-S2L2A", "Core-S1RTC")
    }
    cells = [row["grid_cell"] for row in metadata["Core-S2L2A"]]
    assert 0 < len(cells) - len(set(cells)) < 0.2 * len(cells)
    taken = {
        folder: {
            row["grid_cell"]: datetime.strptime(row["product_id"].split("_")[at], "%Y%m%dT%H%M%S")
            for row in rows
        }
        for (folder, rows), at in zip(metadata.items(), (2, 4), strict=True)
    }
    days = [
        abs((time.date() - taken["Core-S1RTC"][cell].date()).days)
        for cell, time in taken["Core-S2L2A"].items()
        if cells.count(cell) == 1
    ]
    assert max(days) <= 9
    assert 0 < np.mean(days) < 5


def test_radar_is_linear_power_and_missing_where_the_swath_ends(archive: ArchivePaths) -> None:
    for row, image in rows_of(archive, "Core-S1RTC"):
        for name in ("vv", "vh"):
            pixels, profile = decode(image[name])
            assert profile["nodata"] == -32768
            valid = pixels[pixels != -32768]
            assert (valid > 0).all()
            assert -32 < 10 * np.log10(valid.mean()) < 3
            assert 1 - valid.size / pixels.size == pytest.approx(row["nodata"])


def test_worldcover_gives_back_the_land_cover_of_every_pixel(
    archive: ArchivePaths,
) -> None:
    tiles = sorted(archive.worldcover.glob("*.tif"))
    assert tiles
    for tile in tiles:
        with rasterio.open(tile) as file:
            assert (file.width, file.height) == (36000, 36000)
            assert file.crs == "EPSG:4326"
            assert file.block_shapes == [(1024, 1024)]
            south, west = file.bounds.bottom, file.bounds.left
            name = re.search(r"v200_([NS])(\d\d)([EW])(\d{3})_Map", tile.name)
            assert round(south) == int(name[2]) * (1 if name[1] == "N" else -1)
            assert round(west) == int(name[4]) * (1 if name[3] == "E" else -1)
            assert file.transform.a == pytest.approx(1 / 12000)
        assert tile.stat().st_size < 400_000
    for number, (kind, place) in enumerate(
        settle(np.random.default_rng([SPEC.seed, 0]), SPEC.cells, SPEC.px)
    ):
        rng = np.random.default_rng([SPEC.seed, 1, number])
        cover = make_landscape(rng, BIOMES[kind], SPEC.px).cover
        back = np.zeros_like(cover)
        for tile in tiles:
            with rasterio.open(tile) as file:
                reproject(
                    rasterio.band(file, 1),
                    part := np.zeros_like(cover),
                    dst_crs=f"EPSG:{place.epsg}",
                    dst_transform=rasterio.Affine(10, 0, place.left, 0, -10, place.top),
                    resampling=Resampling.nearest,
                )
                back = np.where(part > 0, part, back)
        assert (back > 0).all()
        assert set(np.unique(back)) <= CODES
        # Nearest neighbour twice moves a border by less than a pixel.
        assert (back == cover).mean() > 0.75
        shares = [np.bincount(c.ravel(), minlength=101) / c.size for c in (back, cover)]
        assert np.abs(shares[0] - shares[1]).sum() < 0.1


@pytest.fixture(scope="module")
def lands() -> dict[str, Landscape]:
    return {
        kind: make_landscape(np.random.default_rng(5), biome, 264) for kind, biome in BIOMES.items()
    }


def scene(**changes: float) -> optics.Scene:
    values = {
        "season": 0.5, "sun_zenith": 0.6, "sun_azimuth": 2.4, "aerosol": 0.1, "vapour": 2.0,
        "cloud": 0.0,
    }  # fmt: skip
    return optics.Scene(**{**values, **changes})


def test_land_cover_has_a_long_tail_and_all_classes(lands: dict[str, Landscape]) -> None:
    assert set().union(*(np.unique(land.cover).tolist() for land in lands.values())) == CODES
    kinds = [kind for kind, _ in settle(np.random.default_rng(0), 400, 264)]
    counts = np.sort(np.unique(kinds, return_counts=True)[1])
    assert counts[-1] > 6 * counts[0]
    assert counts[0] >= 1


def test_land_cover_has_structure(lands: dict[str, Landscape]) -> None:
    # Neighbours are alike: not drawn pixel by pixel.
    for land in lands.values():
        alike = (land.cover[:, 1:] == land.cover[:, :-1]).mean()
        by_chance = ((np.bincount(land.cover.ravel()) / land.cover.size) ** 2).sum()
        assert alike >= by_chance + 0.4 * (1 - by_chance)


def test_surface_spectra_are_plausible(lands: dict[str, Landscape]) -> None:
    seen = optics.observe(np.random.default_rng(0), lands["rainforest"], scene()).l2a
    tree = lands["rainforest"].cover == 10
    assert seen["B08"][tree].mean() > 4 * seen["B04"][tree].mean()
    ocean = optics.observe(np.random.default_rng(0), lands["sea"], scene()).l2a
    assert ocean["B11"].mean() < 0.03
    snow = lands["ice"].cover == 70
    ice = optics.observe(np.random.default_rng(0), lands["ice"], scene()).l2a
    assert ice["B03"][snow].mean() > 0.6
    assert ice["B11"].mean() < 0.4 * ice["B03"].mean()
    for bands in (seen, ocean, ice):
        assert all(
            np.isfinite(b).all() and b.min() > -0.1 and b.max() < 2.5 for b in bands.values()
        )


def test_the_atmosphere_adds_blue_and_takes_vapour_bands(lands: dict[str, Landscape]) -> None:
    image = optics.observe(np.random.default_rng(0), lands["temperate_forest"], scene())
    added = [image.l1c[b].mean() - image.l2a[b].mean() for b in ("B01", "B02", "B03", "B04")]
    assert added[0] > added[1] > added[2] > added[3]
    assert 0.04 < added[0] < 0.2
    assert image.l1c["B09"].mean() < 0.6 * image.l2a["B09"].mean()
    assert image.l1c["B10"].mean() < 0.01
    hazy = optics.observe(np.random.default_rng(0), lands["temperate_forest"], scene(aerosol=0.5))
    assert hazy.l1c["B02"].mean() > image.l1c["B02"].mean() + 0.01


def test_clouds_hide_the_optical_bands_and_cast_shadows(lands: dict[str, Landscape]) -> None:
    land = lands["rainforest"]
    image = optics.observe(np.random.default_rng(0), land, scene(cloud=0.4))
    assert set(np.unique(image.cloud_mask)) == {0, 1, 2, 3}
    clear_sky = optics.observe(np.random.default_rng(0), land, scene())
    assert not clear_sky.cloud_mask.any()
    change = image.l2a["B04"] / clear_sky.l2a["B04"]
    clear, cloud, shadow = (np.median(change[image.cloud_mask == code]) for code in (0, 1, 3))
    assert 0.8 < clear < 1.2
    assert cloud > 4
    assert shadow < 0.8
    assert 0.15 < np.isin(image.cloud_mask, (1, 2)).mean() < 0.7


def test_seasons_change_vegetation(lands: dict[str, Landscape]) -> None:
    def ndvi(season: float) -> float:
        bands = optics.observe(np.random.default_rng(0), lands["steppe"], scene(season=season)).l2a
        return float(np.median((bands["B08"] - bands["B04"]) / (bands["B08"] + bands["B04"])))

    assert ndvi(0.9) > ndvi(-0.9) + 0.1


def test_radar_sees_water_dark_towns_bright_and_speckle(lands: dict[str, Landscape]) -> None:
    calm = radar.Pass(ascending=True, wind=0.0, wetness=0.0)
    city = radar.observe(np.random.default_rng(0), lands["city"], calm)
    cover = lands["city"].cover
    assert city["vv"][cover == 50].mean() > 3 * city["vv"][cover == 30].mean()
    sea = radar.observe(np.random.default_rng(0), lands["sea"], calm)
    assert 10 * np.log10(sea["vv"].mean()) < -15
    assert (sea["vh"].mean()) < sea["vv"].mean()
    # Speckle of a flat surface: variance / mean^2 is one over the number of looks.
    patch = sea["vv"][:200, :200]
    assert patch.var() / patch.mean() ** 2 == pytest.approx(1 / radar.LOOKS, rel=0.25)


def test_the_sea_is_water_only(lands: dict[str, Landscape]) -> None:
    assert (lands["sea"].cover == WATER).all()


def test_every_material_has_a_spectrum_texture_and_backscatter() -> None:
    assert optics.LUSH.shape == optics.SERE.shape == (len(MATERIALS), len(optics.BANDS))
    assert (optics.LUSH > 0).all()
    assert optics.TEXTURE.shape == (len(MATERIALS),)
    for land in (make_landscape(np.random.default_rng(i), BIOMES["coast"], 96) for i in range(4)):
        assert land.material.max() < len(MATERIALS)
        assert (land.cover > 0).all()

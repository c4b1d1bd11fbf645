"""Real pixels as SAFE products: the same tiles as of the arrays, to the digital number."""

import re
import zipfile

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.warp import Resampling, reproject, transform_bounds
from safe_products import GSD, ORDER, Product, write_radar, write_safe, write_zip

from terrafm.config import IngestConfig
from terrafm.data.archive import Cell, CellRef, Layout
from terrafm.data.archive import Product as Pixels
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.modalities import MODALITIES

CITIES = {"paris": (448260, 5411980 // 60 * 60), "dubai": (300000, 2800020)}
SIZE, TILE = 264, 132


class Arrays:
    """A source whose cells are arrays in memory: what the files give is compared with it."""

    def __init__(self, cells, modalities):
        self._cells, self._modalities = cells, modalities

    def layout(self):
        bands = {m: MODALITIES[m].gsd for m in self._modalities}
        return Layout(10, next(iter(self._cells.values())).shape, bands)

    def cells(self):
        return [
            CellRef(name, name, tuple(m for m in MODALITIES if m in cell.products))
            for name, cell in sorted(self._cells.items())
        ]

    def read(self, ref):
        return self._cells[ref.cell_id]


def city(realdata, name, date):
    """Bands of a city in whole pixels of 60 m, its time and MGRS tile."""
    pixels, stamp = {}, ""
    for path in sorted((realdata / "oscd" / name / f"imgs_{date}").glob("*.tif")):
        band = re.search(r"_(B\w\w)\.tif$", path.name).group(1)
        with rasterio.open(path) as file:
            side = SIZE * 10 // GSD[band]
            pixels[band] = file.read(1)[:side, :side]
        stamp = path.name
    time = re.search(r"\d{8}T\d{6}", stamp).group(0)
    tile = re.search(r"T(\d\d[A-Z]{3})", stamp).group(1)
    assert set(pixels) == set(ORDER)
    return pixels, time, tile


def iso(time):
    return f"{time[:4]}-{time[4:6]}-{time[6:11]}:{time[11:13]}:{time[13:]}+00:00"


def tiles_of(uri):
    """(tile id, group) -> pixels, and what was decided."""
    dataset = Dataset.open(uri)
    stored = {}
    for row, tile_id in enumerate(dataset.tile_ids):
        for group, pixels in dataset.read_tile(row).items():
            stored[tile_id, group] = pixels
    return stored, dataset


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_cities_at_two_dates(form, realdata, tmp_path, worldcover_tile, monkeypatch):
    """Level-1C of 2016 to 2018, older than the offset, in one grid of MGRS for each city."""
    cells, archive = {}, tmp_path / "archive"
    for name, corner in CITIES.items():
        for date in (1, 2):
            pixels, time, tile = city(realdata, name, date)
            epsg = 32600 + int(tile[:2])
            product = Product(
                pixels, level="L1C", tile=tile, time=time, baseline="0204", epsg=epsg,
                corner=corner, cloud=0.0,
            )  # fmt: skip
            if form == "zip":
                write_zip(archive, product, zipfile.ZIP_DEFLATED if date == 1 else 0)
            else:
                write_safe(archive, product)
            place = f"{tile}_00_00"
            bands = {band: values for band, values in pixels.items() if band != "B10"}
            cells[f"{place}_{time}"] = Cell(
                f"{place}_{time}", f"EPSG:{epsg}", (10.0, 0.0, corner[0], 0.0, -10.0, corner[1]),
                (SIZE, SIZE), 10,
                {"s2_l1c": Pixels("s2_l1c", bands, {b: GSD[b] for b in bands}, 0.0, product.name,
                                  iso(time), 0.0, pixels["B10"])},
                place=place,
            )  # fmt: skip
    cover = str(worldcover_tile("N48E000"))
    worldcover_tile("N24E054")
    config = IngestConfig(workers=0, ocean_drop=0.0, dates_per_place=2)
    options = {"tile_size": TILE, "worldcover": cover, "modalities": ("s2_l1c",)}
    ingest("safe", str(archive), str(tmp_path / "safe"), config=config, **options)
    plain = config.model_copy(update={"dates_per_place": 1})
    monkeypatch.setattr(
        "terrafm.data.ingest.job.open_source", lambda *_: Arrays(cells, ("s2_l1c",))
    )
    ingest("arrays:Arrays", str(archive), str(tmp_path / "plain"), config=plain, **options)
    found, dataset = tiles_of(tmp_path / "safe")
    expected, _ = tiles_of(tmp_path / "plain")
    assert len(dataset) == 4 * (SIZE // TILE) ** 2
    assert found.keys() == expected.keys()
    for key, pixels in expected.items():
        np.testing.assert_array_equal(found[key], pixels)
    decided = {d["offset"] for d in dataset.report["decisions"]["s2_l1c"]}
    assert decided == {0}
    places = {dataset.tile(row)["place"] for row in range(len(dataset))}
    assert len(places) == len(dataset) // 2


def test_the_cell_of_major_tom(realdata, tmp_path, worldcover_tile, major_tom_archive):
    """The published cell, read as Major-TOM and as SAFE of the same pixels."""
    folder = next((realdata / "major_tom/S2L2A/0U/0U_199R").iterdir())
    pixels = {}
    for path in folder.glob("B*.tif"):
        with rasterio.open(path) as file:
            pixels[path.stem] = file.read(1)
    found = re.match(r"(S2.)_MSIL2A_(\w{15})_N(\d{4})_R007_T(\w{5})_(\w{15})", folder.name)
    satellite, time, baseline, tile, generated = found.groups()
    product = Product(
        pixels, tile=tile, time=time, baseline=baseline, generated=generated, satellite=satellite,
        corner=(799980 // 60 * 60, 10320),
    )  # fmt: skip
    assert product.name == folder.name
    write_zip(tmp_path / "archive", product)
    metadata = {"grid_cell": "0U_199R", "product_id": folder.name, "timestamp": iso(time)}
    bands = {path.stem: path.read_bytes() for path in folder.glob("*.tif")}
    published = major_tom_archive({"Core-S2L2A": [(metadata, bands)]})
    cover = str(worldcover_tile("N00E015", np.full((2500, 4500), 10, np.uint8), 33500, 31500))
    options = {
        "worldcover": cover, "modalities": ("s2_l2a",),
        "config": IngestConfig(workers=0, ocean_drop=0.0),
    }  # fmt: skip
    ingest("safe", str(tmp_path / "archive"), str(tmp_path / "safe"), **options)
    ingest("major-tom", str(published), str(tmp_path / "published"), **options)
    safe, dataset = tiles_of(tmp_path / "safe")
    plain, _ = tiles_of(tmp_path / "published")
    assert len(dataset) == 4
    for (tile_id, group), expected in plain.items():
        key = f"{tile}_00_00_{time}{tile_id.removeprefix('0U_199R')}", group
        np.testing.assert_array_equal(safe[key], expected)
    assert dataset.tile(0)["products"]["s2_l2a"]["offset"] == 1000


def test_real_radar_on_the_grid_of_the_city(realdata, tmp_path):
    """VV in hundredths of a dB on its own grid of degrees, as rasterio warps its power."""
    path = next((realdata / "oscd/paris/s1_vv").glob("orbit59_t1.tif"))
    with rasterio.open(path) as file:
        db = np.where(file.read(1) == -32768, np.nan, file.read(1) / 100).astype(np.float32)
        transform, crs, bounds = file.transform, file.crs, file.bounds
    to_metres = Transformer.from_crs(4326, 32631, always_xy=True)
    x, y = to_metres.transform((bounds.left + bounds.right) / 2, (bounds.top + bounds.bottom) / 2)
    corner = (round(x / 60) * 60 - 1320, round(y / 60) * 60 + 1320)
    pixels, time, tile = city(realdata, "paris", 1)
    write_safe(tmp_path, Product(pixels, level="L1C", tile=tile, time=time, baseline="0204",
                                 epsg=32631, corner=corner))  # fmt: skip
    name = f"S1A_IW_GRDH_1SDV_{time[:8]}T173357_orbit59_Gamma0_VV_db.tif"
    written = write_radar(tmp_path / name, db)
    with rasterio.open(written, "r+") as file:
        file.crs, file.transform = crs, transform
    request = SceneRequest(tile_size=TILE)
    source = SafeArchive(str(tmp_path), ("s1", "s2_l1c"), request)
    (ref,) = source.cells()
    read = source.read(ref).products["s1"]
    assert (read.missing_bands, read.time[:10]) == (("VH",), f"{iso(time)[:10]}")
    # No measured backscatter is 0 dB to the last digit.
    db[db == 0] = np.nan
    expected = np.full((SIZE, SIZE), np.nan)
    left, _, right, _ = transform_bounds(
        32631, crs, corner[0], corner[1] - 2640, corner[0] + 2640, corner[1], densify_pts=21
    )
    # A pixel of the radar is 6.7 m wide at this latitude, and 10 m high.
    across = SIZE * transform.a / (right - left)
    assert 0.6 < across < 0.75
    reproject(
        10 ** (db.astype(float) / 10), expected, src_transform=transform, src_crs=crs,
        src_nodata=np.nan, dst_nodata=np.nan, dst_crs="EPSG:32631", resampling=Resampling.bilinear,
        dst_transform=rasterio.Affine(10, 0, corner[0], 0, -10, corner[1]), XSCALE=across, YSCALE=1,
    )  # fmt: skip
    there = np.isfinite(expected)
    assert there.mean() > 0.9
    off = 10 * np.log10(read.bands["VV"][there]) - 10 * np.log10(expected[there])
    assert np.abs(off).max() <= 0.005

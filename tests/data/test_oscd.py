"""The benchmarks' own source: cities at two dates, radar with one polarisation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from terrafm.config import load_config
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from harness.oscd import OscdCities

BANDS = (*MODALITIES["s2_l1c"].bands, "B10")
GSD = dict(zip(MODALITIES["s2_l1c"].bands, MODALITIES["s2_l1c"].gsd, strict=True)) | {"B10": 60}
DEGREES = 1.15e-4  # of 10 m, about


def write(path, pixels, pixel, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    corner = (2.3, 48.8)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=pixels.dtype.name,
        count=1,
        height=pixels.shape[0],
        width=pixels.shape[1],
        crs="EPSG:4326",
        transform=rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
        nodata=nodata,
    ) as file:
        file.write(pixels, 1)


@pytest.fixture
def archive(tmp_path):
    """Two cities of 100 x 131 px at 10 m, a row more in 20 m bands; radar in one of them."""
    rng = np.random.default_rng(0)
    for city in ("aville", "beton"):
        for date in (1, 2):
            for band in BANDS:
                g = GSD[band] // 10
                shape = (-(-100 // g), -(-131 // g))
                pixels = rng.integers(200, 900, shape).astype(np.uint16)
                name = f"T31UDQ_2017082{date}T105019_{band}.tif"
                write(tmp_path / city / f"imgs_{date}" / name, pixels, g * DEGREES)
    for name, level in (("orbit8_t1", -900), ("orbit59_t1", -800), ("orbit59_t2", -700)):
        pixels = np.full((150, 190), level, np.int16)
        pixels[:, :20] = -32768
        pixels[:, 120:] = level - 100
        write(tmp_path / "aville/s1_vv" / f"{name}.tif", pixels, 8.98e-5, nodata=-32768)
    return tmp_path


def test_a_city_at_a_date_is_a_cell(archive):
    source = OscdCities(str(archive), ("s1", "s2_l1c", "s2_l2a"))
    refs = source.cells()
    assert [(ref.cell_id, ref.modalities) for ref in refs] == [
        ("aville_1", ("s1", "s2_l1c")),
        ("aville_2", ("s1", "s2_l1c")),
        ("beton_1", ("s2_l1c",)),
        ("beton_2", ("s2_l1c",)),
    ]
    assert source.layout().shape == (96, 126)
    cells = [source.read(ref) for ref in refs]
    assert [cell.place for cell in cells] == ["aville", "aville", "beton", "beton"]
    assert [cell.products["s2_l1c"].time for cell in cells[:2]] == [
        "2017-08-21T10:50:19+00:00",
        "2017-08-22T10:50:19+00:00",
    ]
    assert set(cells[0].products["s2_l1c"].bands) == set(MODALITIES["s2_l1c"].bands)
    assert cells[0].products["s2_l1c"].cirrus is not None
    assert not cells[0].faults


def test_land_cover_is_what_the_date_shows(archive):
    """Water, trees, grass and bare ground by NDWI and NDVI, in four quarters."""
    quarters = {
        "B03": [900, 300, 400, 900],
        "B04": [500, 200, 500, 1000],
        "B08": [100, 2000, 1500, 1200],
    }
    folder = archive / "beton" / "imgs_2"
    for band, values in quarters.items():
        pixels = np.repeat(np.repeat(np.reshape(values, (2, 2)), 50, 0), 66, 1).astype(np.uint16)
        write(folder / f"T31UDQ_20170822T105019_{band}.tif", pixels[:, :131], DEGREES)
    source = OscdCities(f"{archive}?cities=beton", ("s2_l1c",))
    cover = source.read(source.cells()[1]).land_cover
    assert cover.shape == (96, 126)
    assert [cover[0, 0], cover[0, -1], cover[-1, 0], cover[-1, -1]] == [80, 10, 30, 60]
    assert len(np.unique(cover)) == 4


def test_the_radar_lies_on_the_grid_of_10_m_in_db(archive):
    source = OscdCities(str(archive), ("s1", "s2_l1c"))
    first, second = (source.read(ref).products["s1"] for ref in source.cells()[:2])
    # Of the orbit that both dates have, though another was there first.
    assert np.nanmax(first.bands["VV"]) == pytest.approx(-8.0)
    assert np.nanmax(second.bands["VV"]) == pytest.approx(-7.0)
    power = first.bands["VV"]
    assert (list(first.bands), first.missing_bands, power.shape) == (["VV"], ("VH",), (96, 126))
    # 20 and 120 columns of 8.98e-5 degrees are 15.6 and 93.7 of 1.15e-4; bilinear between them.
    assert np.isnan(power[:, :15]).all()
    np.testing.assert_allclose(power[:, 17:92], -8.0)
    np.testing.assert_allclose(power[:, 96:], -9.0)


def test_cities_are_chosen_and_left_out_by_name(archive):
    def cities(query):
        return OscdCities(f"{archive}?{query}", ("s2_l1c",)).cities()

    assert cities("cities=beton") == ["beton"]
    assert cities("without=beton") == ["aville"]
    assert cities("cities=aville,beton&without=aville") == ["beton"]
    with pytest.raises(UsageError, match="has no paris; cities: aville, beton"):
        cities("without=paris")
    with pytest.raises(UsageError, match="does not exist"):
        OscdCities(str(archive / "nowhere"), ("s2_l1c",)).cells()
    with pytest.raises(UsageError, match="no city with s1"):
        OscdCities(f"{archive}?cities=beton", ("s1",)).cells()


def test_real_cities_resample_as_rasterio_does(realdata):
    source = OscdCities(f"{realdata / 'oscd'}?cities=saclay_e,abudhabi", ("s1", "s2_l1c"))
    for ref in source.cells():
        cell = source.read(ref)
        with rasterio.open(ref.location["s1"]) as radar:
            expected = np.full(cell.products["s1"].bands["VV"].shape, np.nan, np.float32)
            reproject(
                radar.read(1) / np.float32(100),
                expected,
                src_transform=radar.transform,
                src_crs=radar.crs,
                dst_transform=rasterio.Affine(*cell.transform),
                dst_crs=cell.crs,
                resampling=Resampling.bilinear,
                dst_nodata=np.nan,
            )
        np.testing.assert_allclose(cell.products["s1"].bands["VV"], expected, atol=1e-4)
        assert np.isfinite(expected).mean() > 0.99
        assert -15 < np.median(expected) < -3


@pytest.mark.slow
def test_real_cities_become_a_dataset_of_places(realdata, tmp_path):
    settings = [
        "ingest.require_modalities=[s2_l1c]", "ingest.allow_missing_bands=[s1]",
        "ingest.ocean_drop=0",
        # Workers of a Ray that is there already do not have the benchmarks' folder.
        "ingest.workers=0",
    ]  # fmt: skip
    report = ingest(
        "harness.oscd:OscdCities",
        f"{realdata / 'oscd'}?cities=paris,beirut",
        str(tmp_path / "tiles"),
        tile_size=96,
        modalities=("s1", "s2_l1c"),
        config=load_config(None, settings).ingest,
    )
    assert report.details["missing_bands"] == {"s1": {"VH": 2}}
    offsets = report.details["decisions"]["s2_l1c"]
    assert [(d["offset"], d["reason"], d["products"]) for d in offsets] == [(0, "cirrus band", 4)]
    dataset = Dataset.open(tmp_path / "tiles")
    names, counts = np.unique(dataset.places, return_counts=True)
    assert len(names) == 4 * 4 + 12 * 11
    assert (counts == 2).all()
    assert dataset.available.sum(0).tolist() == [2 * 16, 2 * 148]

"""SAFE products become cells: what is read of them, what is chosen, what is named when it fails."""

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from folders import faults_of
from safe_products import BANDS, CORNER, Product, ground, write_safe, write_zip
from safe_sources import ALL, L1C, L2A, hyp3, only_cell, power, source

from terrafm.config import IngestConfig
from terrafm.data.archive import BadCellError
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.scenes.request import SceneWords
from terrafm.errors import UsageError


@pytest.mark.parametrize("form", ["folder", "stored", "deflated", "flat", "old", "one product"])
@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_every_form_of_a_product_gives_its_pixels(level, form, tmp_path):
    pixels = ground(2)
    product = Product(pixels, level=level, flat=True if form == "flat" else None)
    if form == "old":
        product = replace(product, layout="old", baseline="0204")
    if form in ("stored", "deflated"):
        method = zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        place = write_zip(tmp_path, product, method)
    else:
        place = write_safe(tmp_path / "2022/07", product)
    archive = place if form == "one product" else tmp_path
    cell = only_cell(archive)
    modality = f"s2_{level.lower()}"
    read = cell.products[modality]
    assert set(read.bands) == set(BANDS)
    for band in BANDS:
        np.testing.assert_array_equal(read.bands[band], pixels[band])
    assert (read.cirrus is None) == (level == "L2A")
    if level == "L1C":
        np.testing.assert_array_equal(read.cirrus, pixels["B10"])
    key = "BOA_ADD_OFFSET" if level == "L2A" else "RADIO_ADD_OFFSET"
    assert read.claim == ((0, "baseline N0204") if form == "old" else (1000, key))
    assert (read.product_id, read.cloud_cover) == (product.name, 5.0)
    assert read.time == "2022-07-06T08:56:11+00:00"
    assert (cell.crs, cell.transform[2], cell.transform[5]) == ("EPSG:32633", *CORNER)
    assert (cell.place, cell.cell_id) == ("33TWL_00_00", "33TWL_00_00_20220706T085611")


def test_cells_are_blocks_of_whole_tiles(tmp_path):
    pixels = ground(3, size=300)
    write_safe(tmp_path, Product(pixels))
    opened = source(tmp_path, L2A, tile_size=120)
    (ref,) = opened.cells()
    cell = opened.read(ref)
    # 300 px are two tiles of 120, and as many as are usual lie in one cell.
    assert (cell.shape, opened.layout().shape) == ((240, 240), (240, 240))
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B05"], pixels["B05"][:120, :120])
    with pytest.raises(UsageError, match="no cell of --grid mgrs with tiles of 534 px"):
        source(tmp_path, L2A, tile_size=534).cells()


def test_a_scene_that_ends_inside_a_cell_is_missing_there(tmp_path):
    pixels = ground(7, size=264)
    write_safe(tmp_path, Product(pixels))
    cell = only_cell(tmp_path, L2A, tile_size=132, grid="utm:396", bbox="16.25,45.10,16.28,45.14")
    (row, column) = (
        int(cell.transform[5] - CORNER[1]) // 10,
        int(CORNER[0] - cell.transform[2]) // 10,
    )
    for band, values in cell.products["s2_l2a"].bands.items():
        gsd = 10 * 396 // values.shape[0]
        top, left = row * 10 // gsd, column * 10 // gsd
        inside = pixels[band][: values.shape[0] - top, : values.shape[1] - left]
        shown = values[top : top + inside.shape[0], left : left + inside.shape[1]]
        np.testing.assert_array_equal(shown, inside[: shown.shape[0], : shown.shape[1]])
        assert (values != 0).sum() == shown.size


def test_of_two_tiles_over_a_cell_the_one_that_covers_it_is_taken(tmp_path):
    near = Product(ground(8), tile="33TWL")
    west = CORNER[0] - 1320
    other = Product(ground(9), tile="33TVL", corner=(west, CORNER[1]))
    write_safe(tmp_path, near)
    write_safe(tmp_path, other)
    refs = source(tmp_path, L2A, grid="utm:132").cells()
    taken = {ref.location.cell.name: ref.location.scenes["s2_l2a"][0].tile for ref in refs}
    opened = source(tmp_path, L2A, grid="utm:132")
    assert set(taken.values()) == {"33TWL", "33TVL"}
    assert len(taken) == len(refs)
    for ref in refs:
        assert len(ref.location.scenes["s2_l2a"]) == 1
        read = opened.read(ref).products["s2_l2a"].bands["B02"]
        product = near if taken[ref.location.cell.name] == "33TWL" else other
        left = int(ref.location.cell.left - product.corner[0]) // 10
        top = int(product.corner[1] - ref.location.cell.top) // 10
        rows, columns = slice(max(top, 0), top + 132), slice(max(left, 0), left + 132)
        expected = product.pixels["B02"][rows, columns]
        np.testing.assert_array_equal(np.sort(read[read != 0]), np.sort(expected.ravel()))


def test_of_one_acquisition_the_newest_processing_is_taken_and_counted(tmp_path):
    versions = {
        "0301": ("20220707T000000", 1), "0400": ("20220708T000000", 2),
        "0510": ("20230601T000000", 3), "9999": ("20240101T000000", 4),
    }  # fmt: skip
    for baseline, (generated, seed) in versions.items():
        product = Product(ground(seed, bands=BANDS), baseline=baseline, generated=generated)
        write_safe(tmp_path, product)
    opened = source(tmp_path, L2A)
    (ref,) = opened.cells()
    read = opened.read(ref).products["s2_l2a"]
    assert "_N0510_" in read.product_id
    np.testing.assert_array_equal(read.bands["B02"], ground(3, bands=BANDS)["B02"])
    assert opened.layout().notes["scenes"]["superseded"] == 3


def test_dates_of_a_place_are_chosen_by_partners_clouds_and_gap(tmp_path):
    days = {"20220701T085611": 60.0, "20220706T085611": 20.0, "20220711T085611": 1.0}
    for number, (time, cloud) in enumerate(days.items()):
        write_safe(tmp_path, Product(ground(number), time=time, cloud=cloud))
        if time != "20220711T085611":
            write_safe(tmp_path, Product(ground(9), level="L1C", time=time, cloud=cloud))
    both = ("s2_l1c", "s2_l2a")

    def dates(**settings):
        refs = source(tmp_path, both, config=IngestConfig(**settings)).cells()
        return sorted(ref.cell_id.rpartition("_")[2][:8] for ref in refs)

    # The clearest has no Level-1C.
    assert dates() == ["20220706"]
    assert dates(dates_per_place=2) == ["20220701", "20220706"]
    assert dates(dates_per_place=9) == ["20220701", "20220706", "20220711"]
    assert dates(dates_per_place=2, max_cloud_cover=50.0) == ["20220706", "20220711"]
    refs = source(tmp_path, both, config=IngestConfig(dates_per_place=9)).cells()
    nearest = {ref.cell_id[-15:]: ref.location.scenes["s2_l1c"][0].time[:10] for ref in refs}
    assert nearest["20220711T085611"] == "2022-07-06"
    opened = source(tmp_path, both, config=IngestConfig(dates_per_place=9))
    assert {opened.read(ref).place for ref in refs} == {"33TWL_00_00"}


def test_time_and_area_are_filters(l2a, tmp_path):
    folder, _ = l2a
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert len(source(tmp_path, L2A, time="2022-07-06/2022-07-06").cells()) == 1
    assert len(source(tmp_path, L2A, time="../2022-07-06T09:00:00").cells()) == 1
    assert len(source(tmp_path, L2A, bbox="16,45,17,46").cells()) == 1
    for nowhere in ({"time": "2022-07-07/.."}, {"bbox": "10,45,11,46"}):
        with pytest.raises(UsageError, match="in the time and area that"):
            source(tmp_path, L2A, **nowhere).cells()
    area = tmp_path / "area.geojson"
    area.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, '
        '"geometry": {"type": "Polygon", "coordinates": [[[16, 45], [17, 45], [17, 46], [16, 45]]]}'
        "}]}"
    )
    assert len(source(tmp_path, L2A, geometry=str(area)).cells()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"grid": "s2"}, "--grid takes mgrs, major-tom or utm:PIXELS"),
        ({"grid": "utm:1000"}, "a multiple of 6 pixels"),
        ({"grid": "utm:60"}, "from --tile-size 132"),
        ({"bbox": "1,2,3"}, "--bbox takes WEST,SOUTH,EAST,NORTH"),
        ({"bbox": "1,5,3,4"}, "is no place"),
        ({"bbox": "nan,5,3,4"}, "is no place"),
        ({"time": "May"}, "--time takes START/END"),
        ({"time": "2022-07-06/2022-07-01"}, "ends before it begins"),
        ({"geometry": "/no/such.geojson"}, "does not exist"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(words, message, tmp_path, refused):
    (tmp_path / "archive").mkdir()
    arguments = [part for name, value in words.items() for part in (f"--{name}", value)]
    command = ("ingest", "--source", "safe", "--input", tmp_path / "archive")
    line = refused(*command, "--output", tmp_path / "out", "--tile-size", 132, *arguments)
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_grid_is_not_for_archives_that_have_cells(tmp_path, refused):
    command = ("ingest", "--source", "geotiff", "--input", tmp_path, "--output", tmp_path / "out")
    assert "--grid: --source geotiff has cells of its own" in refused(*command, "--grid", "mgrs")
    line = refused(*command, "--set", "ingest.dates_per_place=2")
    assert "ingest.dates_per_place: --source geotiff" in line


def test_archives_without_scenes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        source(tmp_path / "nowhere").cells()
    with pytest.raises(UsageError, match="holds no scene of s2_l2a"):
        source(tmp_path, L2A).cells()
    hyp3(tmp_path, "20220705T165000", power(1))
    with pytest.raises(UsageError, match="radar alone, which has no MGRS tiles"):
        source(tmp_path, ALL).cells()
    assert source(tmp_path, ALL, grid="utm:132").cells()


def test_quantities_that_no_archive_has_are_those_of_the_metadata(tmp_path):
    pixels = ground(1, bands=BANDS)
    write_safe(tmp_path, Product(pixels, quantification=20000, offset=-500))
    read = only_cell(tmp_path, L2A).products["s2_l2a"]
    expected = (pixels["B04"].astype(float) - 500) / 20000
    np.testing.assert_allclose(read.bands["B04"], expected)
    assert read.claim == (0, "BOA_ADD_OFFSET")


def test_clouds_and_nodata_are_those_of_the_masks_in_the_cell(tmp_path):
    scl = np.full((132, 132), 4, np.uint8)
    scl[:66, :66] = 9
    scl[66:, 66:] = 0
    pixels = ground(1, bands=BANDS)
    write_safe(tmp_path / "a", Product(pixels, scl=scl, cloud=90.0))
    opened = source(tmp_path / "a", L2A)
    (ref,) = opened.cells()
    assert ref.listed["s2_l2a"].cloud_cover is None
    read = opened.read(ref).products["s2_l2a"]
    assert read.cloud_cover == pytest.approx(100 / 3)
    assert (read.bands["B02"][132:, 132:] == 0).all()
    assert (read.bands["B01"][22:, 22:] == 0).all()
    np.testing.assert_array_equal(read.bands["B11"][:66], pixels["B11"][:66])
    classi = np.zeros((3, 44, 44), np.uint8)
    classi[0, :22], classi[1, :22, :22], classi[2] = 1, 1, 1
    write_safe(tmp_path / "b", Product(ground(1), level="L1C", classi=classi, cloud=90.0))
    assert only_cell(tmp_path / "b", L1C).products["s2_l1c"].cloud_cover == pytest.approx(50)


def test_levels_may_be_mixed(tmp_path):
    """One date has both, another Level-1C alone."""
    write_safe(tmp_path, Product(ground(1)))
    write_zip(tmp_path, Product(ground(2), level="L1C"))
    write_zip(tmp_path, Product(ground(3), level="L1C", time="20220716T085611"))
    opened = source(tmp_path, ALL, config=IngestConfig(dates_per_place=5))
    modalities = {ref.cell_id[-15:-7]: ref.modalities for ref in opened.cells()}
    assert modalities == {"20220706": ("s2_l1c", "s2_l2a"), "20220716": ("s2_l1c",)}
    assert set(opened.layout().band_gsd) == {"s2_l1c", "s2_l2a"}


def broken(own_l2a, how):
    folder, product = own_l2a
    root = folder / f"{product.name}.SAFE"
    images = next(root.glob("GRANULE/*/IMG_DATA"))
    if how == "no metadata":
        (root / "MTD_MSIL2A.xml").unlink()
    elif how == "no tile":
        shutil.rmtree(root / "GRANULE")
    elif how == "no metadata of the tile":
        next(root.glob("GRANULE/*/MTD_TL.xml")).unlink()
    elif how == "no bands":
        shutil.rmtree(images)
    elif how == "cut metadata":
        text = (root / "MTD_MSIL2A.xml").read_text()
        (root / "MTD_MSIL2A.xml").write_text(text[: len(text) // 2])
    elif how == "no band B11":
        next(images.rglob("*B11_20m.jp2")).unlink()
    elif how == "cut band":
        path = next(images.rglob("*B11_20m.jp2"))
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "empty band":
        next(images.rglob("*B11_20m.jp2")).write_bytes(b"")
    elif how == "other size":
        shutil.copy(next(images.rglob("*B01_60m.jp2")), next(images.rglob("*B11_20m.jp2")))
    elif how == "other zone":
        path = next(root.glob("GRANULE/*/MTD_TL.xml"))
        path.write_text(path.read_text().replace("EPSG:32633", "http://127.0.0.1:9/x"))
    return folder


@pytest.mark.parametrize(
    ("how", "where", "why"),
    [
        ("no metadata", "MTD_MSIL2A.xml", "file not found: a partial download?"),
        ("no tile", "GRANULE", "no tile in it: a partial download?"),
        ("no metadata of the tile", "MTD_TL.xml", "file not found: a partial download?"),
        ("no bands", "IMG_DATA", "no band in it: a partial download?"),
        ("cut metadata", "MTD_MSIL2A.xml", "not readable XML (cut short?)"),
        ("no band B11", ".SAFE", "no B11; ingest.allow_missing_bands=[s2_l2a]"),
        ("cut band", "B11_20m.jp2", "damaged or cut short"),
        ("empty band", "B11_20m.jp2", "not a readable JPEG 2000 file"),
        ("other size", "B11_20m.jp2", "44 x 44 px, but its metadata say 132 x 132 px at 20 m"),
        ("other zone", "MTD_TL.xml", "not a zone of UTM"),
    ],
)
def test_a_fault_is_one_row_that_names_the_file(
    how, where, why, own_l2a, tmp_path, worldcover_tile
):
    """Beside a sound product of another tile, which is read."""
    folder = broken(own_l2a, how)
    write_safe(folder, Product(ground(2, bands=BANDS), tile="33TXL",
                               corner=(CORNER[0] + 60000, CORNER[1])))  # fmt: skip
    out = tmp_path / "out"
    report = ingest(
        "safe", str(folder), str(out), tile_size=132, modalities=L2A,
        worldcover=str(worldcover_tile("N45E015")),
        config=IngestConfig(workers=0, ocean_drop=0.0, max_bad_fraction=0.99),
    )  # fmt: skip
    assert report.tiles == 4
    (row,) = faults_of(out)
    assert row["where"].endswith(where), row
    assert why in row["why"]
    assert row["modality"] in ("s2_l2a", "")
    assert row["quarantined"]


def test_a_zip_that_is_cut_short_is_a_fault(tmp_path):
    write_safe(tmp_path, Product(ground(1, bands=BANDS)))
    path = write_zip(tmp_path, Product(ground(2), level="L1C"))
    path.write_bytes(path.read_bytes()[:-5000])
    refs = source(tmp_path).cells()
    (fault,) = [ref.faults[0] for ref in refs if ref.faults]
    assert fault[0] == "s2_l1c"
    assert "not a readable zip (cut short?)" in fault[1].why
    assert fault[1].where == str(path)


def test_a_member_whose_bytes_changed_is_a_fault(tmp_path):
    path = write_zip(tmp_path, Product(ground(2)), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as packed:
        info = next(i for i in packed.infolist() if i.filename.endswith("B04_10m.jp2"))
    content = bytearray(path.read_bytes())
    content[info.header_offset + 4000] ^= 255
    path.write_bytes(content)
    opened = source(tmp_path, L2A)
    with pytest.raises(BadCellError, match=r"B04_10m.jp2.*damaged"):
        opened.read(opened.cells()[0])


def test_ten_thousand_scenes_would_be_listed_fast(l2a, tmp_path, monkeypatch):
    """No band is opened, and two files of metadata are read of each product."""
    from terrafm.data.rasters import opening
    from terrafm.data.sources.scenes import product_files

    folder, product = l2a
    root = next(folder.glob("*.SAFE"))
    for day in range(1, 21):
        time = f"202207{day:02d}T085611"
        shutil.copytree(root, tmp_path / root.name.replace(product.time, time))
    reads = []
    kept = product_files.read_bytes, product_files.read_range
    monkeypatch.setattr(product_files, "read_bytes", lambda *a: reads.append(a) or kept[0](*a))
    monkeypatch.setattr(product_files, "read_range", lambda *a: reads.append(a) or kept[1](*a))
    monkeypatch.setattr(opening.rasterio, "open", None)
    refs = source(tmp_path, ALL, config=IngestConfig(dates_per_place=99)).cells()
    assert (len(refs), len(reads)) == (20, 40)
    assert max(stop for _, *rest in reads for stop in rest[-1:]) <= 8 << 20


def test_ingest_gives_the_digital_numbers_without_the_offset(tmp_path, worldcover_tile):
    pixels = ground(4)
    write_zip(tmp_path / "in", Product(pixels, scl=np.full((132, 132), 4, np.uint8)))
    write_safe(tmp_path / "in", Product(pixels, level="L1C"))
    hyp3(tmp_path / "in", "20220705T165000", power(7))
    settings = ("safe", str(tmp_path / "in"), str(tmp_path / "out"))
    options = {
        "tile_size": 132, "worldcover": str(worldcover_tile("N45E015")),
        "config": IngestConfig(workers=0, ocean_drop=0.0),
    }  # fmt: skip
    report = ingest(*settings, **options)
    dataset = Dataset.open(tmp_path / "out")
    assert list(dataset.tile_ids) == [f"33TWL_00_00_20220706T085611_{r}_{c}" for r in (0, 1)
                                      for c in (0, 1)]  # fmt: skip
    stored = dataset.read_tile(3)
    for modality in ("s2_l1c", "s2_l2a"):
        for group in (g for g in dataset.groups if g.modality == modality):
            side = group.height
            for band, values in zip(group.bands, stored[group.name], strict=True):
                np.testing.assert_array_equal(values, pixels[band][side:, side:] - 1000)
    expected = np.rint(1000 * np.log10(power(7)[132:, 132:].astype(float)))
    np.testing.assert_array_equal(stored["s1_10m"][0], np.maximum(expected, -5000))
    assert dataset.tile(0)["place"] == "33TWL_00_00_0_0"
    assert dataset.tile(0)["products"]["s2_l2a"]["offset_reason"] == "BOA_ADD_OFFSET"
    assert report.details["settings"]["scenes"]["grid"] == "mgrs"
    assert ingest(*settings, **options).already_complete
    with pytest.raises(UsageError, match="other settings"):
        ingest(*settings, **options, scenes=SceneWords(grid="utm:132"))


def test_a_reader_gets_neither_the_listing_nor_open_files(l2a):
    import pickle

    opened = source(l2a[0], L2A)
    (ref,) = opened.cells()
    before = opened.read(ref)
    again = pickle.loads(pickle.dumps(opened))
    assert "_listing" not in again.__dict__
    after = again.read(pickle.loads(pickle.dumps(ref)))
    np.testing.assert_array_equal(
        after.products["s2_l2a"].bands["B02"], before.products["s2_l2a"].bands["B02"]
    )


def test_a_broken_product_of_another_level_costs_nothing_else(tmp_path, worldcover_tile):
    """It is a row of the quarantine; what is there needs no Level-1C for it."""
    write_safe(tmp_path / "in", Product(ground(1, bands=BANDS)))
    (tmp_path / "in" / f"{Product({}, level='L1C').name}.zip").write_bytes(b"half a zip")
    out = tmp_path / "out"
    report = ingest(
        "safe", str(tmp_path / "in"), str(out), tile_size=132,
        worldcover=str(worldcover_tile("N45E015")),
        config=IngestConfig(workers=0, ocean_drop=0.0),
    )  # fmt: skip
    assert report.tiles == 4
    (row,) = faults_of(out)
    assert row["modality"] == "s2_l1c"
    assert row["what"].endswith(".zip")
    shutil.rmtree(next((tmp_path / "in").glob("*.SAFE")))
    with pytest.raises(UsageError, match=r"none of the 1 products in .* can be used; the first"):
        source(tmp_path / "in").layout()


def test_clouds_in_the_cell_break_the_limit(tmp_path, worldcover_tile):
    """Three tiles of the product are clear, one is under cloud, though its name says 90%."""
    scl = np.full((132, 132), 4, np.uint8)
    scl[:66, :66] = 9
    write_safe(tmp_path / "in", Product(ground(1, bands=BANDS), scl=scl, cloud=90.0))
    limits = IngestConfig(workers=0, ocean_drop=0.0, max_cloud_cover=50.0)
    options = {"tile_size": 132, "worldcover": str(worldcover_tile("N45E015")), "config": limits}
    small = SceneWords(grid="utm:132")
    report = ingest("safe", str(tmp_path / "in"), str(tmp_path / "a"), scenes=small, **options)
    whole = ingest("safe", str(tmp_path / "in"), str(tmp_path / "b"), **options)
    assert whole.tiles == 4
    assert report.details["products_left_out"] == {"s2_l2a": {"clouds": 1}}

import numpy as np
import pytest

from terrafm.data.archive import BadCellError
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import TerraFMError, UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)


def read(archive, name, modalities=ALL):
    source = GeotiffFolder(str(archive), modalities)
    return source.read(next(ref for ref in source.cells() if ref.cell_id == name))


def test_a_place_is_read_band_by_band(geotiff_archive, place):
    pixels = place(3)
    archive = geotiff_archive({"a": pixels})
    source = GeotiffFolder(str(archive), ALL)
    layout = source.layout()
    assert (layout.gsd, layout.shape, layout.land_cover) == (10, (96, 96), True)
    assert layout.band_gsd["s2_l2a"] == (10,) * 12
    cell = read(archive, "a")
    assert (cell.crs, cell.gsd, cell.shape) == ("EPSG:32633", 10, (96, 96))
    assert cell.transform == (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    assert not cell.faults
    l1c = cell.products["s2_l1c"]
    np.testing.assert_array_equal(l1c.cirrus, pixels["S2L1C"][10])
    np.testing.assert_array_equal(l1c.bands["B11"], pixels["S2L1C"][11])
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B12"], pixels["S2L2A"][11])
    np.testing.assert_array_equal(cell.products["s1"].bands["VH"], pixels["S1RTC"][1])
    np.testing.assert_array_equal(cell.land_cover, pixels["LULC"][0])


def test_real_places(realdata):
    source = GeotiffFolder(str(realdata / "colocated"), ALL)
    refs = source.cells()
    assert [ref.cell_id for ref in refs] == [
        "282D_485L_3_3",
        "38D_378R_2_3",
        "433D_629L_3_1",
        "609U_541L_3_0",
    ]
    cell = source.read(refs[0])
    assert cell.crs == "EPSG:32722"
    assert set(cell.products) == set(ALL)
    assert cell.products["s1"].time.startswith("2021-07-21T08:40:10")
    # The coastline of the Brazilian place lies in one place for all sensors: water is dark in
    # near infrared and in radar.
    water = cell.land_cover == 1
    assert 0.05 < water.mean() < 0.95
    for modality, band in (("s2_l2a", "B08"), ("s2_l1c", "B08"), ("s1", "VH")):
        pixels = cell.products[modality].bands[band].astype(float)
        assert np.corrcoef(pixels.ravel(), water.ravel())[0, 1] < -0.6


def test_folder_names_and_missing_files(geotiff_archive, place, tmp_path):
    archive = geotiff_archive(
        {
            "a": {"sentinel1": place()["S1RTC"], "s2_l2a": place()["S2L2A"]},
            "b": {"L1C": place()["S2L1C"]},
        }
    )
    (archive / "notes.txt").write_text("not a sensor")
    (archive / "s2_l2a" / "a.tif.aux.xml").write_text("<x/>")
    refs = GeotiffFolder(str(archive), ALL).cells()
    assert {ref.cell_id: ref.modalities for ref in refs} == {
        "a": ("s1", "s2_l2a"),
        "b": ("s2_l1c",),
    }
    assert [r.cell_id for r in GeotiffFolder(str(archive), ("s1",)).cells()] == ["a"]
    assert read(archive, "b").land_cover is None


def test_bands_are_taken_by_name_where_all_have_one(geotiff_archive, place, geotiff_bytes):
    pixels = place()
    order = (*MODALITIES["s2_l2a"].bands[:8], "B09", "B11", "B12", "B8A")
    archive = geotiff_archive({"a": {"S2L2A": geotiff_bytes(pixels["S2L2A"], names=order)}})
    bands = read(archive, "a").products["s2_l2a"].bands
    np.testing.assert_array_equal(bands["B8A"], pixels["S2L2A"][11])
    np.testing.assert_array_equal(bands["B12"], pixels["S2L2A"][10])
    assert tuple(bands) == MODALITIES["s2_l2a"].bands


@pytest.mark.parametrize("compress", [None, "lzw", "deflate"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_a_fault(geotiff_archive, place, geotiff_bytes, compress, share):
    pixels = place()
    whole = geotiff_bytes(pixels["S2L2A"], compress=compress)
    pixels["S2L2A"] = whole[: int(share * len(whole))]
    cell = read(geotiff_archive({"a": pixels}), "a")
    assert set(cell.products) == {"s1", "s2_l1c"}
    assert cell.faults["s2_l2a"].where.endswith("S2L2A/a.tif")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pixels": slice(0, 11)}, "11 bands, not 12"),
        ({"corner": (500010.0, 5000000.0)}, "corner x 500010.00 m, not 500000.00 m"),
        ({"crs": "EPSG:32634"}, "coordinate system EPSG:32634, not EPSG:32633"),
        ({"crs": "EPSG:4326", "gsd": 1e-4}, "EPSG:4326 is not projected in metres"),
        ({"crs": None}, "has no CRS, so that its place is not known"),
        ({"gsd": 12.5}, "whole metres, not 12.5 x -12.5"),
        ({"gsd": 20}, "96 x 96 px at 20 m, not 96 x 96 px at 10 m"),
        ({"crop": 90}, "90 x 90 px at 10 m, not 96 x 96 px at 10 m"),
    ],
)
def test_a_sensor_that_does_not_fit_is_a_fault(geotiff_archive, place, geotiff_bytes, change, why):
    pixels = place()
    crop = change.pop("crop", 96)
    bands = change.pop("pixels", slice(None))
    pixels["S2L2A"] = geotiff_bytes(pixels["S2L2A"][bands, :crop, :crop], **change)
    cell = read(geotiff_archive({"a": pixels}), "a")
    assert set(cell.products) == {"s1", "s2_l1c"}
    assert why in cell.faults["s2_l2a"].why


def test_land_cover_must_fit(geotiff_archive, place, geotiff_bytes):
    pixels = place()
    pixels["LULC"] = geotiff_bytes(pixels["LULC"], corner=(500100.0, 5000000.0))
    with pytest.raises(BadCellError, match=r"LULC/a.tif.*grid does not match"):
        read(geotiff_archive({"a": pixels}), "a")


def test_a_place_of_which_nothing_can_be_read(geotiff_archive):
    archive = geotiff_archive({"a": {"S2L2A": b"no tiff"}, "b": None})
    with pytest.raises(BadCellError, match=r"S2L2A/a.tif: not a readable GeoTIFF"):
        read(archive, "a", ("s2_l2a",))
    assert GeotiffFolder(str(archive), ALL).layout().shape == (96, 96)


def test_archives_that_cannot_be_used(geotiff_archive, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        GeotiffFolder(str(tmp_path / "missing"), ALL).layout()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no folder of"):
        GeotiffFolder(str(tmp_path / "empty"), ALL).layout()
    (tmp_path / "hollow" / "S2L2A").mkdir(parents=True)
    with pytest.raises(UsageError, match="no GeoTIFF in"):
        GeotiffFolder(str(tmp_path / "hollow"), ALL).layout()
    archive = geotiff_archive({"a": {"S2L2A": b"no tiff"}})
    with pytest.raises(TerraFMError, match="no file under") as caught:
        GeotiffFolder(str(archive), ALL).layout()
    assert caught.value.exit_code == 1


def coarse(geotiff_bytes, pixels, sensors, number, gsd=20):
    """The pixels of a place with some sensors on a grid of another size."""
    corner = (500000.0 + 10_000 * number, 5000000.0)
    return pixels | {
        name: geotiff_bytes(pixels[name][:, ::2, ::2], gsd=gsd, corner=corner) for name in sensors
    }


@pytest.mark.parametrize("odd", [0, 1, 2, 4])
@pytest.mark.parametrize("sensors", [("S1RTC",), ("S1RTC", "S2L1C", "S2L2A", "LULC")])
def test_one_odd_place_decides_nothing(geotiff_archive, place, geotiff_bytes, odd, sensors):
    places = {f"p{i}": place(i) for i in range(5)}
    places[f"p{odd}"] = coarse(geotiff_bytes, places[f"p{odd}"], sensors, odd)
    source = GeotiffFolder(str(geotiff_archive(places)), ALL)
    assert (source.layout().gsd, source.layout().shape) == (10, (96, 96))
    cell = source.read(source.cells()[odd])
    if len(sensors) == 1:
        assert set(cell.products) == {"s2_l1c", "s2_l2a"}
        assert "48 x 48 px at 20 m, not 96 x 96 px at 10 m" in cell.faults["s1"].why
    else:
        assert cell.gsd == 20


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_sensor_with_pixels_of_its_own_size_everywhere(
    geotiff_archive, place, geotiff_bytes, count
):
    places = {f"p{i}": coarse(geotiff_bytes, place(i), ("S1RTC",), i) for i in range(count)}
    source = GeotiffFolder(str(geotiff_archive(places)), ALL)
    with pytest.raises(UsageError, match="S1RTC has 20 m and the others 10 m"):
        source.layout()
    assert GeotiffFolder(source._uri, ("s2_l2a",)).layout().gsd == 10


@pytest.mark.parametrize(
    "names",
    [
        ("a.tif", "a.TIF"),
        ("a.tif", "a.tiff"),
        ("a.TIF", "a.Tif", "a.TIFF"),
    ],
)
def test_a_place_that_stands_twice_is_a_fault(geotiff_archive, place, names):
    root = geotiff_archive({"a": place(0), "b": place(1)})
    whole = (root / "S2L2A/a.tif").read_bytes()
    (root / "S2L2A/a.tif").unlink()
    for name in names:
        (root / "S2L2A" / name).write_bytes(whole)
    refs = {ref.cell_id: ref for ref in GeotiffFolder(str(root), ALL).cells()}
    assert set(refs) == {"a", "b"}
    assert set(refs["a"].modalities) == {"s1", "s2_l1c"}
    ((modality, fault),) = refs["a"].faults
    assert modality == "s2_l2a"
    assert all(name in str(fault) for name in names)


def test_two_folders_of_one_sensor_are_refused(geotiff_archive, place):
    root = geotiff_archive({"a": place(0)})
    (root / "S2L2A").rename(root / "s2_l2a")
    (root / "Sentinel-2-L2A").mkdir()
    with pytest.raises(UsageError, match=r"s2_l2a and .*Sentinel-2-L2A are both"):
        GeotiffFolder(str(root), ALL).cells()


@pytest.mark.parametrize(
    "name",
    ["with space", "a#b", "50%", "50%20", "what?", "[0]", "{x}", "Łódź", "a.b.c", "~x", "!y"],
)
def test_places_may_have_any_name(geotiff_archive, place, name):
    root = geotiff_archive({name: place(0)}, folder=f"archive {name}")
    source = GeotiffFolder(str(root), ALL)
    (ref,) = source.cells()
    assert ref.cell_id == name
    assert set(source.read(ref).products) == set(ALL)


def test_clutter_is_passed_over(geotiff_archive, place):
    root = geotiff_archive({"a": place(0)})
    for folder in (root, root / "S2L2A"):
        for name in (".DS_Store", "._a.tif", "Thumbs.db", "desktop.ini", ".hidden.tif"):
            (folder / name).write_bytes(b"clutter")
        (folder / "__MACOSX").mkdir()
    (root / "S2L2A/empty.tif").touch()
    source = GeotiffFolder(str(root), ALL)
    refs = {ref.cell_id: ref for ref in source.cells()}
    assert set(refs) == {"a", "empty"}
    with pytest.raises(BadCellError, match="the file is empty"):
        source.read(refs["empty"])


def test_links_are_followed(geotiff_archive, place, tmp_path):
    root = geotiff_archive({"a": place(0)})
    (root / "S2L2A").rename(tmp_path / "elsewhere")
    (root / "S2L2A").symlink_to(tmp_path / "elsewhere")
    (root / "S2L2A/loop").symlink_to(root)
    (root / "S2L2A/gone.tif").symlink_to(root / "nothing.tif")
    source = GeotiffFolder(str(root), ALL)
    refs = {ref.cell_id: ref for ref in source.cells()}
    assert set(source.read(refs["a"]).products) == set(ALL)
    with pytest.raises(BadCellError, match="file not found"):
        source.read(refs["gone"])

import json
import pickle

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from terrafm.data.archive import BadCellError
from terrafm.data.sources.pairing import count_pairs, nearest
from terrafm.data.sources.ssl4eo_s12 import Ssl4eoS12
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
SIDE = 24
L1C_BANDS = (*MODALITIES["s2_l1c"].bands, "B10")


def encode(pixels, gsd, corner=(73.0, 30.0), crs="EPSG:4326"):
    step = gsd / 111_320
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype=pixels.dtype.name,
            count=1,
            height=pixels.shape[0],
            width=pixels.shape[1],
            crs=crs,
            transform=rasterio.Affine(
                step / np.cos(np.radians(30)), 0, corner[0], 0, -step, corner[1]
            ),
        ) as file:
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


@pytest.fixture
def scene(tmp_path):
    """Writes one scene of constant bands."""

    def write(folder, name, value=1000, location="0000001", baseline="N0214", **grid):
        path = tmp_path / "archive" / folder / location / name
        path.mkdir(parents=True)
        if folder == "s1":
            for band in ("VV", "VH"):
                pixels = np.full((SIDE, SIDE), -float(value) / 100, np.float32)
                (path / f"{band}.tif").write_bytes(encode(pixels, 10, **grid))
        else:
            names = L1C_BANDS if folder == "s2c" else MODALITIES["s2_l2a"].bands
            for band in names:
                gsd = 60
                if band != "B10":
                    gsd = MODALITIES["s2_l2a"].gsd[MODALITIES["s2_l2a"].bands.index(band)]
                pixels = np.full((SIDE * 10 // gsd,) * 2, value, np.uint16)
                (path / f"{band.replace('B0', 'B')}.tif").write_bytes(encode(pixels, gsd, **grid))
        metadata = {"CLOUDY_PIXEL_PERCENTAGE": 12.5, "PRODUCT_ID": f"S2B_X_{baseline}_R048"}
        (path / "metadata.json").write_text(json.dumps(metadata if folder != "s1" else {}))
        return path

    return write


def s2(day):
    return f"202006{day:02d}T054639_202006{day:02d}T054831_T43RCP"


def s1(day):
    return f"S1A_IW_GRDH_1SDV_202006{day:02d}T010800_202006{day:02d}T010825_032904_03CFBA_D457"


@pytest.fixture
def archive(scene, tmp_path):
    scene("s2a", s2(4), 1004)
    scene("s2a", s2(14), 1014)
    scene("s2c", s2(4), 2004)
    scene("s2c", s2(24), 2024)
    scene("s1", s1(7), 1200)
    scene("s1", s1(9), 1400)
    scene("s2c", s2(4), 3004, location="0000002")
    return tmp_path / "archive"


def cells(archive, modalities=ALL):
    source = Ssl4eoS12(str(archive), modalities)
    return source, {ref.cell_id: ref for ref in source.cells()}


def test_each_date_of_the_anchor_is_a_cell_with_the_nearest_partners(archive):
    source, refs = cells(archive)
    assert list(refs) == [f"0000001_{s2(4)}", f"0000001_{s2(14)}", f"0000002_{s2(4)}"]
    names = [{m: u.rpartition("/")[2] for m, u in ref.location.items()} for ref in refs.values()]
    assert names == [
        {"s2_l2a": s2(4), "s2_l1c": s2(4), "s1": s1(7)},
        # Ten days before and ten after: the later one.
        {"s2_l2a": s2(14), "s2_l1c": s2(24), "s1": s1(9)},
        {"s2_l1c": s2(4)},
    ]
    assert [source.read(ref).place for ref in refs.values()] == ["0000001", "0000001", "0000002"]
    assert count_pairs(list(refs.values()))["s1"] == {
        "cells": 2,
        "within_1_days": 0,
        "within_4_days": 1,
        "within_7_days": 2,
        "within_30_days": 2,
    }
    layout = source.layout()
    assert (layout.gsd, layout.shape) == (10, (SIDE, SIDE))
    reader = pickle.loads(pickle.dumps(source))
    assert "_listing" not in vars(reader)
    cell = reader.read(refs[f"0000001_{s2(14)}"])
    assert (cell.crs, cell.shape, cell.gsd) == ("EPSG:4326", (SIDE, SIDE), 10)
    assert cell.transform[2] == 73.0
    assert not cell.faults
    assert {m: p.bands["VV" if m == "s1" else "B09"].flat[0] for m, p in cell.products.items()} == {
        "s2_l2a": 1014,
        "s2_l1c": 2024,
        "s1": -14,
    }
    assert cell.products["s2_l2a"].bands["B01"].shape == (4, 4)
    assert cell.products["s2_l2a"].cloud_cover == 12.5
    # It is read whatever the name says: it may contradict it.
    assert (cell.products["s2_l1c"].cirrus == 2024).all()


def test_only_wanted_modalities_are_listed_and_read(archive):
    source, refs = cells(archive, ("s1",))
    assert list(refs) == [f"0000001_{s1(7)}", f"0000001_{s1(9)}"]
    assert set(source.read(refs[f"0000001_{s1(7)}"]).products) == {"s1"}


def test_cirrus_is_read_where_no_baseline_is_known(scene, tmp_path):
    scene("s2c", s2(4), baseline="without")
    source, refs = cells(tmp_path / "archive")
    (ref,) = refs.values()
    assert source.read(ref).products["s2_l1c"].cirrus.shape == (4, 4)


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ({"corner": (73.002, 30.0)}, r"lies 19\d m from the cell's other patches"),
        ({"crs": "EPSG:32643"}, "not a north-up patch in EPSG:4326"),
        ({"corner": (73.0, 60.0)}, "pixels of 5.8 m, not of 10 m"),
    ],
)
def test_a_patch_of_another_place_is_a_fault(scene, tmp_path, grid, why):
    scene("s2a", s2(4))
    scene("s1", s1(7), **grid)
    source, refs = cells(tmp_path / "archive")
    cell = source.read(next(iter(refs.values())))
    assert set(cell.products) == {"s2_l2a"}
    with pytest.raises(BadCellError, match=why):
        raise cell.faults["s1"]


def test_stamps_may_differ_by_some_pixels(scene, tmp_path):
    scene("s2a", s2(4))
    scene("s1", s1(7), corner=(72.9996, 30.0003))
    source, refs = cells(tmp_path / "archive")
    assert not source.read(next(iter(refs.values()))).faults


def test_damaged_scenes_are_faults(scene, tmp_path):
    path = scene("s2a", s2(4))
    scene("s1", s1(7))
    source, refs = cells(tmp_path / "archive")
    (ref,) = refs.values()
    (path / "B8.tif").write_bytes((path / "B8.tif").read_bytes()[:100])
    assert "not a readable GeoTIFF" in source.read(ref).faults["s2_l2a"].why
    (path / "B8.tif").write_bytes((path / "B9.tif").read_bytes())
    assert "4 x 4 px do not cover 240 x 240 m at 10 m" in source.read(ref).faults["s2_l2a"].why
    (path / "metadata.json").write_text("{")
    assert "metadata cannot be read" in source.read(ref).faults["s2_l2a"].why
    (path / "metadata.json").unlink()
    assert "file not found" in source.read(ref).faults["s2_l2a"].why


def test_archives_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match="holds no SSL4EO-S12 archive: expected folders s1, s2c"):
        cells(tmp_path / "missing")
    (tmp_path / "s2a").mkdir()
    with pytest.raises(UsageError, match="no scene in the folders"):
        cells(tmp_path)


def test_nearest_without_times():
    assert nearest("", {"a": "2020-01-01", "b": "2020-01-02", "c": ""}) == "b"
    assert nearest("2020-01-01", {"a": "", "b": ""}) == "a"
    assert nearest("2020-01-01", {}) is None


@pytest.mark.parametrize("value", ["unknown", float("nan"), [1]])
def test_clouds_that_are_no_number_are_a_fault(scene, tmp_path, value):
    path = scene("s2a", s2(4))
    scene("s1", s1(7))
    (path / "metadata.json").write_text(json.dumps({"CLOUDY_PIXEL_PERCENTAGE": value}))
    source, refs = cells(tmp_path / "archive")
    cell = source.read(next(iter(refs.values())))
    assert set(cell.products) == {"s1"}
    assert "CLOUDY_PIXEL_PERCENTAGE is" in cell.faults["s2_l2a"].why


def test_clutter_is_passed_over(archive):
    before = list(cells(archive)[1])
    for folder in [archive, *archive.rglob("*")]:
        if folder.is_dir():
            for name in (".DS_Store", "._x", "Thumbs.db", "desktop.ini"):
                (folder / name).touch()
            (folder / "__MACOSX").mkdir(exist_ok=True)
    assert list(cells(archive)[1]) == before


def test_an_odd_first_cell_does_not_decide_the_shape(scene, tmp_path, monkeypatch):
    for day in (4, 14, 24):
        scene("s2a", s2(day))
    monkeypatch.setattr(f"{__name__}.SIDE", 12)
    scene("s2a", s2(1))
    source, refs = cells(tmp_path / "archive", ("s2_l2a",))
    assert source.read(next(iter(refs.values()))).shape == (12, 12)
    assert source.layout().shape == (24, 24)

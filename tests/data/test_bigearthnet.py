import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.data.sources.bigearthnet import BigEarthNet
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
S2 = "S2A_MSIL2A_20170613T101031_{}"
S1 = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{}"


@pytest.fixture
def patch(tmp_path, geotiff_bytes):
    """Writes one patch of constant bands."""

    def write(folder, name, value, side=24, corner=(500000.0, 5000000.0), **metadata):
        path = tmp_path / "archive" / folder / name
        path.mkdir(parents=True)
        modality = "s1" if name.startswith("S1") else "s2_l2a"
        spec = MODALITIES[modality]
        for band, gsd in zip(spec.bands, spec.gsd, strict=True):
            pixels = np.full((1, side * 10 // gsd, side * 10 // gsd), value, np.uint16)
            if modality == "s1":
                pixels = pixels.astype(np.float32)
            content = geotiff_bytes(pixels, gsd=gsd, corner=corner)
            (path / f"{name}_{band}.tif").write_bytes(content)
        if metadata:
            (path / f"{name}_labels_metadata.json").write_text(json.dumps(metadata))
        return path

    return write


@pytest.fixture
def archive(patch, tmp_path):
    """Two pairs that only the JSON can tell, and a radar patch without a partner."""
    for i, number in enumerate(("87_48", "87_49")):
        patch(
            "optical",
            S2.format(number),
            1000 + i,
            tile_source="S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE",
            acquisition_date="2017-06-13 10:10:31",
        )
    for i, number in enumerate(("1_1", "1_2")):
        patch(
            "radar",
            S1.format(number),
            50 + i,
            corresponding_s2_patch=S2.format(("87_49", "87_48")[i]),
            acquisition_time="2017-06-13T16:50:43",
            scene_source="S1A_SCENE",
        )
    patch("radar", S1.format("9_9"), 60)
    return tmp_path / "archive"


def test_pairs_are_those_that_the_metadata_names(archive):
    source = BigEarthNet(str(archive), ALL)
    refs = {ref.cell_id: ref for ref in source.cells()}
    assert list(refs) == [S1.format("9_9"), S2.format("87_48"), S2.format("87_49")]
    layout = source.layout()
    assert (layout.gsd, layout.shape, set(layout.band_gsd)) == (10, (24, 24), {"s1", "s2_l2a"})
    cell = pickle.loads(pickle.dumps(source)).read(refs[S2.format("87_48")])
    assert cell.products["s1"].bands["VV"].flat[0] == 51
    assert cell.products["s2_l2a"].bands["B12"].shape == (12, 12)
    assert cell.products["s2_l2a"].time == "2017-06-13T10:10:31"
    assert "_N0205_" in cell.products["s2_l2a"].product_id
    assert cell.products["s1"].product_id == "S1A_SCENE"
    assert refs[S1.format("9_9")].modalities == ("s1",)


def test_the_patches_may_lie_directly_in_the_archive(archive):
    source = BigEarthNet(str(archive / "optical"), ALL)
    assert [ref.modalities for ref in source.cells()] == [("s2_l2a",)] * 2


def test_patches_that_do_not_fit_are_faults(patch, tmp_path):
    patch("a", S2.format("1_1"), 1000, tile_source="x")
    radar = patch(
        "b", S1.format("1_1"), 50, corner=(0.0, 0.0), corresponding_s2_patch=S2.format("1_1")
    )
    source = BigEarthNet(str(tmp_path / "archive"), ALL)
    (ref,) = source.cells()
    # Radar is read first; of two that differ neither has more on its side.
    faults = source.read(ref).faults
    assert "grid does not match" in next(iter(faults.values())).why
    (radar / f"{radar.name}_VV.tif").unlink()
    assert "file not found" in source.read(ref).faults["s1"].why


def test_archives_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        BigEarthNet(str(tmp_path / "missing"), ALL).cells()
    with pytest.raises(UsageError, match="holds no BigEarthNet patches: expected folders"):
        BigEarthNet(str(tmp_path), ALL).cells()
    with pytest.raises(UsageError, match="BigEarthNet has s1, s2_l2a and nothing else"):
        BigEarthNet(str(tmp_path), ("s2_l1c",)).cells()
    (tmp_path / "BigEarthNet-S2-v1.0.tar.gz").touch()
    with pytest.raises(UsageError, match=r"unpack BigEarthNet-S2-v1\.0\.tar\.gz first"):
        BigEarthNet(str(tmp_path), ALL).cells()


V2_S2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
V2_S1 = "S1A_IW_GRDH_1SDV_20170613T165043"


@pytest.fixture
def second(patch, tmp_path):
    """Version 2: three optical patches, radar of two, and what is not read."""
    for number in ("26_57", "26_58", "26_59"):
        patch(f"BigEarthNet-S2/{V2_S2}", f"{V2_S2}_{number}", 1000)
        maps = tmp_path / "archive/Reference_Maps" / V2_S2 / f"{V2_S2}_{number}"
        maps.mkdir(parents=True)
        (maps / f"{V2_S2}_{number}_reference_map.tif").touch()
    for number in ("26_57", "26_58"):
        patch(f"BigEarthNet-S1/{V2_S1}", f"{V2_S1}_33UUP_{number}", 50)
    root = tmp_path / "archive"
    rows = [
        # Not what the numbers suggest, and one more than there are.
        {"patch_id": f"{V2_S2}_26_57", "s1_name": f"{V2_S1}_33UUP_26_58"},
        {"patch_id": f"{V2_S2}_90_90", "s1_name": f"{V2_S1}_33UUP_90_90"},
        {"patch_id": f"{V2_S2}_26_59", "s1_name": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows[:2]), root / "metadata.parquet")
    other = root / "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
    rows = [*rows[2:], {"patch_id": f"{V2_S2}_26_58", "s1_name": f"{V2_S1}_33UUP_26_57"}]
    pq.write_table(pa.Table.from_pylist(rows), other)
    (root / ".DS_Store").touch()
    (root / "BigEarthNet-S2/Thumbs.db").touch()
    return root


def test_version_2_is_paired_by_its_metadata(second):
    source = BigEarthNet(str(second), ALL)
    refs = {ref.cell_id: ref for ref in source.cells()}
    assert list(refs) == [f"{V2_S2}_{number}" for number in ("26_57", "26_58", "26_59")]
    assert refs[f"{V2_S2}_26_57"].location["s1"].endswith("33UUP_26_58")
    assert refs[f"{V2_S2}_26_58"].location["s1"].endswith("33UUP_26_57")
    assert refs[f"{V2_S2}_26_59"].modalities == ("s2_l2a",)
    cell = pickle.loads(pickle.dumps(source)).read(refs[f"{V2_S2}_26_57"])
    assert not cell.faults
    assert cell.products["s2_l2a"].product_id == f"{V2_S2}_26_57"
    assert cell.products["s2_l2a"].time == "2017-06-13T10:10:31"
    assert refs[f"{V2_S2}_26_57"].listed["s1"].time == "2017-06-13T16:50:43"


def test_version_2_by_sensor_and_without_its_metadata(second):
    for folder in (second / "BigEarthNet-S2", second / "BigEarthNet-S2" / V2_S2):
        refs = BigEarthNet(str(folder), ALL).cells()
        assert [ref.modalities for ref in refs] == [("s2_l2a",)] * 3
    refs = BigEarthNet(str(second), ("s1",)).cells()
    assert [ref.cell_id for ref in refs] == [f"{V2_S2}_26_57", f"{V2_S2}_26_58"]
    for path in second.glob("*.parquet"):
        path.unlink()
    with pytest.raises(UsageError, match=r"version 2, whose metadata.parquet pairs"):
        BigEarthNet(str(second), ALL).cells()


def test_a_patch_that_lies_there_twice_is_refused(second, patch):
    patch(f"copy/{V2_S2}", f"{V2_S2}_26_57", 1000)
    with pytest.raises(UsageError, match="are the same: remove one"):
        BigEarthNet(str(second), ALL).cells()

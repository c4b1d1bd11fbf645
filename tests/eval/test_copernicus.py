"""Copernicus-Bench in the layouts that torchgeo's classes read, written small."""

import numpy as np
import pandas as pd
import pytest
import rasterio

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import OpenOptions, open_labelled, open_set
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.modalities import MODALITIES

pytest.importorskip("torchgeo", reason="torchgeo is not installed (terrafm[copernicus])")

L1C = MODALITIES["s2_l1c"].bands
COUNTS = {"train": 6, "val": 3, "test": 3}


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1],
        width=pixels.shape[2], dtype=pixels.dtype.name, crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(pixels)


def levels(bands, shift=0):
    """Every band holds its own number."""
    rows = [
        np.full((16, 16), 500 + 100 * (L1C.index(b) if b in L1C else 30) + shift) for b in bands
    ]
    return np.stack(rows).astype(np.uint16)


def test_eurosat_s2_keeps_b8a_last(tmp_path):
    order = [f"B{i:02d}" for i in range(1, 13)] + ["B8A"]
    classes = ("Forest", "River", "Highway")
    for split, count in COUNTS.items():
        files = [f"{classes[i % 3]}_{split}{i}.jpg" for i in range(count)]
        for i, file in enumerate(files):
            target = tmp_path / "eurosat_s2" / "all_imgs" / classes[i % 3]
            write(target / file.replace(".jpg", ".tif"), levels(order, 20 * (i % 3)))
        (tmp_path / "eurosat_s2" / f"eurosat-{split}.txt").write_text("\n".join(files) + "\n")
    uri = f"copernicus:eurosat_s2@{tmp_path}"
    images = open_labelled(uri)
    (grid,) = images.read(0, ("s2_l1c",))["s2_l1c"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], (500 + 100 * np.arange(12)) * 1e-4, rtol=1e-5)
    assert "B8A=13" in images.bands["s2_l1c"]
    assert [images.classes[k] for k in images.labels[:3]] == list(classes)
    result = compare(uri, options=CompareOptions(resamples=5, size=32))
    assert result["split"] == "the set's splits (train 6, valid 3, test 3), scored on test"
    assert result["rows"][0]["protocols"]["linear"]["scores"]["accuracy"]["value"] == 1.0


def test_bigearthnet_s1_has_several_labels_in_db(tmp_path):
    folder = tmp_path / "bigearthnet_s1s2"
    for split, count in COUNTS.items():
        files = [f"S1A_IW_GRDH_{split}_{i}.tif" for i in range(count)]
        labels = np.zeros((count, 19), int)
        labels[np.arange(count), np.arange(count) % 3] = 1
        labels[:, 5] = 1
        for i, file in enumerate(files):
            pixels = np.stack([np.full((16, 16), v - i % 3, np.float32) for v in (-12, -19)])
            write(folder / "BigEarthNet-S1-5%" / file, pixels)
        table = pd.DataFrame({"s1": files, "s2": files})
        for c in range(19):
            table[f"label {c}"] = labels[:, c]
        table.to_csv(folder / f"multilabel-{split}.csv", index=False)
    uri = f"copernicus:bigearthnet_s1@{tmp_path}"
    images = open_labelled(uri)
    assert images.labels.shape == (12, 19)
    (grid,) = images.read(0, ("s1",))["s1"]
    assert grid.pixels[:, 0, 0].tolist() == [-12.0, -19.0]
    result = compare(uri, options=CompareOptions(resamples=5, size=32))
    assert any("no scored image has" in note for note in result["notes"])
    # Linear power in place of dB.
    first = folder / "BigEarthNet-S1-5%" / "S1A_IW_GRDH_train_0.tif"
    for i in range(6):
        write(first.with_name(f"S1A_IW_GRDH_train_{i}.tif"), np.full((2, 16, 16), 0.1, np.float32))
    for i in range(3):
        write(first.with_name(f"S1A_IW_GRDH_val_{i}.tif"), np.full((2, 16, 16), 0.1, np.float32))
    with pytest.raises(UsageError, match=r"values from 0\.1 to 0\.1 are no dB.*--normalise set"):
        open_labelled(uri)
    open_labelled(uri, OpenOptions(check_units=False))


def test_cloud_s2_has_masks(tmp_path):
    order = [*L1C[:9], "B09", "B10", "B11", "B12"]
    for split, count in COUNTS.items():
        names = [f"ROI_00000__20200101T00000{i}_{split}" for i in range(count)]
        for name in names:
            write(tmp_path / "cloud_s2" / "s2_toa" / f"{name}.tif", levels(order))
            mask = (np.arange(256).reshape(1, 16, 16) % 4).astype(np.uint8)
            write(tmp_path / "cloud_s2" / "cloud" / f"{name}.tif", mask)
        (tmp_path / "cloud_s2" / f"{split}.csv").write_text("\n".join(names) + "\n")
    images = open_set(f"copernicus:cloud_s2@{tmp_path}")
    assert images.mask(0)[0, :4].tolist() == [0, 1, 2, 3]
    assert images.ignore is None
    result = compare(images.uri, options=CompareOptions(resamples=5, size=32))
    assert result["task"] == "segmentation"


def test_what_is_not_there_is_one_line(tmp_path, refused):
    command = ("evaluate", "compare", "--data")
    assert "NAME one of cloud_s2" in refused(*command, f"copernicus:eurosat@{tmp_path}")
    assert "does not exist" in refused(*command, f"copernicus:lcz_s2@{tmp_path}/nowhere")
    assert "cannot open" in refused(*command, f"copernicus:eurosat_s1@{tmp_path}")

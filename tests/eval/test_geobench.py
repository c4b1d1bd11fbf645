"""GEO-Bench v1, written by its own package: wrong band names, scalings, partitions, pickles."""

import sys

import numpy as np
import pytest

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import OpenOptions, open_labelled, open_set
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.modalities import MODALITIES

TRUST = OpenOptions(trust_pickles=True)
BANDS = MODALITIES["s2_l1c"].bands
# What the published files hold, in the order of their keys 01 to 08, 08A, 09 to 12.
EUROSAT = [
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B09",
    "B10",
    "B11",
    "B12",
    "B8A",
]
KILNS = ["B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12", "TCI", "TCI", "TCI"]
IN_ORDER = [*BANDS[:9], "B09", "B10", "B11", "B12"]


@pytest.fixture(scope="module")
def geobench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Release 1.0 makes this folder when it is imported.
        patch.setenv("GEO_BENCH_DIR", str(tmp_path_factory.mktemp("geobench")))
        return pytest.importorskip("geobench", reason="geobench needs Python 3.12 (terrafm[eval])")


def level(band):
    """A band's digital number: every band its own, the cirrus band dark, pictures in bytes."""
    if band == "TCI":
        return 90
    return 12 if band == "B10" else 1000 + 100 * IN_ORDER.index(band)


def write_set(geobench, folder, bands_info, pixels_of, label_of, label_type, splits, **band):
    """Writes samples, task and partitions with the package's own writers."""
    folder.mkdir(parents=True)
    geobench.TaskSpecifications(
        dataset_name=folder.name, benchmark_name="test", patch_size=(16, 16), n_time_steps=1,
        bands_info=bands_info, label_type=label_type, spatial_resolution=10,
    ).save(str(folder))  # fmt: skip
    partition = geobench.dataset.Partition()
    for i, split in enumerate(splits):
        name = f"id_{i:04d}"
        bands = [
            geobench.Band(data, info, 10, **band)
            for data, info in zip(pixels_of(i), bands_info, strict=True)
        ]
        geobench.Sample(bands, label=label_of(i), sample_name=name).write(str(folder))
        partition.add(split, name)
    partition.save(str(folder), "default")
    few = geobench.dataset.Partition(
        {**partition.partition_dict, "train": partition.partition_dict["train"][:4]}
    )
    few.save(str(folder), "0.10x_train")
    return folder


SPLITS = ["train"] * 12 + ["valid"] * 6 + ["test"] * 6


def optical(order):
    generator = np.random.default_rng(0)

    def pixels(i):
        base = [np.full((16, 16), level(band), np.int16) for band in order]
        noise = generator.integers(0, 3, size=(len(order), 16, 16)).astype(np.int16)
        return [
            b + n + (10 * (i % 3) if b[0, 0] > 200 else 0) for b, n in zip(base, noise, strict=True)
        ]

    return pixels


@pytest.fixture
def eurosat(geobench, tmp_path):
    return write_set(
        geobench, tmp_path / "m-eurosat", geobench.sentinel2_13_bands, optical(EUROSAT),
        lambda i: i % 3, geobench.Classification(3, ["crop", "forest", "river"]), SPLITS,
    )  # fmt: skip


def brightness(image, modality):
    (grid,) = image[modality]
    return {
        MODALITIES[modality].bands[c]: float(p.mean())
        for c, p in zip(grid.channels, grid.pixels, strict=True)
    }


def assert_in_place(seen):
    for band, value in seen.items():
        assert value == pytest.approx(level(band) * 1e-4, abs=0.0025), band


def test_the_shifted_keys_of_m_eurosat_are_put_right(eurosat):
    images = open_labelled(eurosat, TRUST)
    seen = brightness(images.read(0, ("s2_l1c",)), "s2_l1c")
    assert set(seen) == set(BANDS)
    assert_in_place(seen)
    assert "published names put right" in images.bands["s2_l1c"]
    assert "B8A=13" in images.bands["s2_l1c"]
    assert "dropped B10=10" in images.bands["s2_l1c"]
    assert images.classes == ("crop", "forest", "river")
    assert images.labels.tolist() == [i % 3 for i in range(24)]
    assert images.splits.tolist() == SPLITS


def test_files_whose_names_are_right_are_left_as_they_are(geobench, tmp_path):
    order = list(IN_ORDER)
    folder = write_set(
        geobench, tmp_path / "m-eurosat", geobench.sentinel2_13_bands, optical(order),
        lambda i: i % 2, geobench.Classification(2), SPLITS,
    )  # fmt: skip
    images = open_labelled(folder, TRUST)
    assert_in_place(brightness(images.read(0, ("s2_l1c",)), "s2_l1c"))
    assert "by the files' band names" in images.bands["s2_l1c"]
    assert images.classes == ("class 0", "class 1")


def test_m_brick_kiln_has_ten_bands_and_a_picture(geobench, tmp_path):
    folder = write_set(
        geobench, tmp_path / "m-brick-kiln", geobench.sentinel2_13_bands, optical(KILNS),
        lambda i: i % 2, geobench.Classification(2, ["no kiln", "kiln"]), SPLITS,
    )  # fmt: skip
    images = open_labelled(folder, TRUST)
    seen = brightness(images.read(0, ("s2_l2a",)), "s2_l2a")
    assert set(seen) == set(BANDS) - {"B06", "B09"}
    assert_in_place(seen)
    assert "missing B06 B09: 0 after normalisation" in images.bands["s2_l2a"]


def test_m_so2sat_is_reflectance_and_linear_power(geobench, tmp_path):
    names = [*geobench.dataset.sentinel1_8_bands, *geobench.sentinel2_13_bands[1:9],
             *geobench.sentinel2_13_bands[-2:]]  # fmt: skip
    order = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]

    def pixels(i):
        radar = [np.full((16, 16), v, np.float32) for v in (0, 0, 0, 0, 0.01, 0.1, 0, 0)]
        return [*radar, *(np.full((16, 16), level(b) * 1e-4, np.float32) for b in order)]

    folder = write_set(
        geobench, tmp_path / "m-so2sat", names, pixels, lambda i: i % 17,
        geobench.Classification(17), SPLITS, convert_to_int16=False,
    )  # fmt: skip
    images = open_labelled(folder, TRUST)
    assert images.modalities == ("s1", "s2_l1c")
    image = images.read(0, images.modalities)
    assert brightness(image, "s1") == pytest.approx({"VV": -10.0, "VH": -20.0}, abs=1e-4)
    seen = brightness(image, "s2_l1c")
    assert set(seen) == set(order)
    assert_in_place(seen)
    assert "missing B01 B09" in images.bands["s2_l1c"]
    assert "VV=6 VH=5" in images.bands["s1"]


def test_several_labels_and_a_class_that_nobody_has(geobench, tmp_path):
    twelve = [b for b in geobench.sentinel2_13_bands if not b.name.startswith("10")]
    order = [b for b in IN_ORDER if b != "B10"]
    folder = write_set(
        geobench, tmp_path / "m-bigearthnet", twelve, optical(order),
        lambda i: np.array([i % 3 == 0, i % 3 < 2, 0, i % 3 == 2], np.int64),
        geobench.MultiLabelClassification(4, ["a", "b", "nobody", "d"]), SPLITS,
    )  # fmt: skip
    options = CompareOptions(resamples=20, open=TRUST)
    result = compare(folder, options=options)
    assert result["task"] == "several labels"
    assert result["n"] == 6
    assert "train 12, valid 6, test 6" in result["split"]
    assert any("nobody" in note for note in result["notes"])
    (spectrum,) = result["rows"]
    for protocol in ("knn20", "knn5", "linear"):
        scores = spectrum["protocols"][protocol]["scores"]
        assert set(scores) == {"f1_micro", "f1_macro", "map_micro", "map_macro"}
        assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in scores.values())
    assert spectrum["protocols"]["linear"]["scores"]["map_macro"]["value"] == pytest.approx(1)


def test_a_partition_is_a_smaller_training_split(eurosat):
    options = OpenOptions(trust_pickles=True, partition="0.10x_train")
    assert (open_labelled(eurosat, options).splits == "train").sum() == 4
    with pytest.raises(UsageError, match=r"cannot open .*Unknown partition 0.33x_train"):
        open_labelled(eurosat, OpenOptions(trust_pickles=True, partition="0.33x_train"))


def test_nothing_is_unpickled_without_the_users_word(eurosat, refused, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("something was unpickled")

    import pickle

    monkeypatch.setattr(pickle, "load", fail)
    monkeypatch.setattr(pickle, "loads", fail)
    monkeypatch.setattr(pickle, "Unpickler", fail)
    assert "--trust-pickles" in refused("evaluate", "compare", "--data", eurosat)


def test_without_the_package_there_is_one_line(eurosat, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "geobench", None)
    line = refused("evaluate", "compare", "--data", eurosat, "--trust-pickles")
    assert "terrafm[eval]" in line


def test_a_damaged_sample_is_named(eurosat, refused):
    (eurosat / "id_0020.hdf5").write_bytes(b"no HDF5")
    line = refused("evaluate", "compare", "--data", eurosat, "--trust-pickles")
    assert "cannot read sample" in line
    assert "id_0020.hdf5" in line


def test_values_of_another_scale_are_refused_unless_the_set_normalises_itself(
    geobench, tmp_path, refused
):
    twelve = [b for b in geobench.sentinel2_13_bands if not b.name.startswith("10")]
    folder = write_set(
        geobench, tmp_path / "m-bigearthnet", twelve,
        lambda i: [np.full((16, 16), 40 + 10 * (i % 2) + b, np.int16) for b in range(12)],
        lambda i: i % 2, geobench.Classification(2), SPLITS,
    )  # fmt: skip
    command = ("evaluate", "compare", "--data", folder, "--trust-pickles")
    assert "--normalise set" in refused(*command)
    images = open_labelled(folder, OpenOptions(trust_pickles=True, check_units=False))
    statistics = images.statistics()["s2_l2a"]
    assert statistics["mean"][0] == pytest.approx(45 * 1e-4)


def test_an_unknown_set_has_to_say_its_product(geobench, tmp_path):
    folder = write_set(
        geobench, tmp_path / "m-mine", geobench.sentinel2_13_bands, optical(IN_ORDER),
        lambda i: i % 2, geobench.Classification(2), SPLITS,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"m-mine is none of .* --modality"):
        open_labelled(folder, TRUST)
    images = open_labelled(folder, OpenOptions(trust_pickles=True, modality="s2_l1c"))
    assert_in_place(brightness(images.read(0, ("s2_l1c",)), "s2_l1c"))


def test_landsat_is_refused(geobench, tmp_path):
    landsat = geobench.dataset.landsat8_9_bands
    folder = write_set(
        geobench, tmp_path / "m-forestnet", landsat,
        lambda i: [np.full((16, 16), 50, np.int16) for _ in landsat],
        lambda i: i % 2, geobench.Classification(2), SPLITS,
    )  # fmt: skip
    with pytest.raises(UsageError, match="has no bands of Sentinel-1 or Sentinel-2"):
        open_labelled(folder, OpenOptions(trust_pickles=True, modality="s2_l2a"))


def test_masks_are_told_from_classes(geobench, tmp_path):
    twelve = [b for b in geobench.sentinel2_13_bands if not b.name.startswith("10")]
    label = geobench.SegmentationClasses("label", spatial_resolution=10, n_classes=3)
    truth = np.arange(256).reshape(16, 16) % 3
    folder = write_set(
        geobench, tmp_path / "m-cashew-plant", twelve, optical([b for b in IN_ORDER if b != "B10"]),
        lambda i: geobench.Band(truth.astype(np.int16), label, 10), label, SPLITS,
    )  # fmt: skip
    images = open_set(folder, TRUST)
    np.testing.assert_array_equal(images.mask(0), truth)
    assert images.ignore == 0
    with pytest.raises(UsageError, match="masks, not classes"):
        open_labelled(folder, TRUST)
    result = compare(folder, options=CompareOptions(size=32, resamples=10, open=TRUST))
    assert result["task"] == "segmentation"
    assert result["n"] == 6
    assert set(result["rows"][0]["protocols"]["linear"]["scores"]) == {"miou", "pixel_accuracy"}

"""The linear probe on patches: it learns what patches say, and nodata does not count."""

import numpy as np
import pytest

from terrafm.errors import UsageError
from terrafm.eval.labelled import Grid
from terrafm.eval.segmentation import compare_masks
from terrafm.eval.table import CompareOptions, render


class Fields:
    """Images of four fields, each of two crops with a spectrum of its own; a strip is nodata."""

    uri = "fields"
    classes = ("no data", "wheat", "maize")
    modalities = ("s2_l2a",)
    bands = {"s2_l2a": "made here"}  # noqa: RUF012
    fingerprint = "fields"
    ignore: int | None = 0

    def __init__(self, noise=0.0, count=20):
        self.names = [f"field {i}" for i in range(count)]
        self.groups = np.arange(count)
        self.splits = np.array((["train"] * 3 + ["valid", "test"]) * (count // 5))
        generator = np.random.default_rng(0)
        self.crops = generator.integers(1, 3, size=(count, 2, 2))
        self.noise = noise * generator.normal(size=(count, 12, 64, 64))
        self.reads = 0

    def mask(self, row):
        mask = np.kron(self.crops[row], np.ones((32, 32), int))
        mask[:, :8] = 0
        return mask

    def read(self, row, modalities):
        self.reads += 1
        crops = np.kron(self.crops[row], np.ones((32, 32)))
        spectrum = np.linspace(-0.05, 0.05, 12)[:, None, None]
        pixels = 0.14 + spectrum * (2 * crops - 3) + self.noise[row]
        return {"s2_l2a": [Grid(tuple(range(12)), pixels.astype(np.float32))]}

    def statistics(self):
        return {"s2_l2a": {"mean": [0.14] * 12, "std": [0.05] * 12}}


FAST = CompareOptions(size=64, resamples=20)


def test_patches_that_tell_the_crop_are_segmented(weights):
    result = compare_masks(Fields(), [weights], (), FAST)
    assert result["task"] == "segmentation"
    assert result["n"] == 4
    assert [row["title"].split()[0] for row in result["rows"]][:2] == ["mean", "untrained"]
    spectrum = result["rows"][0]["protocols"]["linear"]["scores"]
    assert spectrum["miou"]["value"] > 0.9
    assert spectrum["miou"]["low"] <= spectrum["miou"]["value"] <= spectrum["miou"]["high"]
    assert "pixels of label 0 do not count" in result["notes"]
    render(result)
    again = compare_masks(Fields(), [weights], (), FAST)
    assert again == result


def test_noise_is_not_segmented():
    images = Fields()

    def noise(row, modalities):
        pixels = 0.14 + 0.05 * np.random.default_rng(row).normal(size=(12, 64, 64))
        return {"s2_l2a": [Grid(tuple(range(12)), pixels.astype(np.float32))]}

    images.read = noise
    result = compare_masks(images, (), (), FAST)
    assert result["rows"][0]["protocols"]["linear"]["scores"]["miou"]["value"] < 0.6


def test_labels_of_the_test_split_and_nodata_teach_nothing():
    images, changed = Fields(noise=0.05), Fields(noise=0.05)
    test = changed.splits == "test"
    changed.crops = np.where(test[:, None, None], 3 - changed.crops, changed.crops)
    # The pixels stay those of the first.
    changed.read = images.read
    first, other = (compare_masks(i, (), (), FAST)["rows"][0] for i in (images, changed))
    right = first["protocols"]["linear"]["scores"]["pixel_accuracy"]["value"]
    wrong = other["protocols"]["linear"]["scores"]["pixel_accuracy"]["value"]
    assert right + wrong == pytest.approx(1.0)


def test_patch_maps_are_computed_once(tmp_path, weights):
    options = CompareOptions(size=64, resamples=20, features=str(tmp_path))
    images = Fields()
    first = compare_masks(images, [weights], (), options)
    reads = images.reads
    assert reads > 0
    assert compare_masks(images, [weights], (), options) == first
    assert images.reads == reads


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UsageError, match="TerraFM weights only"):
        compare_masks(Fields(), (), ("timm:resnet18",), FAST)
    with pytest.raises(UsageError, match="its protocol is linear"):
        compare_masks(Fields(), (), (), CompareOptions(protocols=["knn5"]))
    images = Fields()
    images.splits = None
    with pytest.raises(UsageError, match="has no splits"):
        compare_masks(images, (), (), FAST)
    images = Fields()
    images.crops[3] = 7
    with pytest.raises(
        UsageError, match="mask of field 3 in fields holds 7, its classes are 0 to 2"
    ):
        compare_masks(images, (), (), FAST)

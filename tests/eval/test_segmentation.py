"""The linear probe on patches: it learns what patches say, and nodata does not count."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid
from terrafm.eval.segmentation.task import MaskTask
from terrafm.eval.tables.common import CompareOptions, render
from terrafm.eval.tables.segmentation import compare_masks

FAST = CompareOptions(size=64, resamples=20)


def test_patches_that_tell_the_crop_are_segmented(fields, weights):
    result = compare_masks(fields(), [weights], (), FAST)
    assert result["task"] == "segmentation"
    assert result["n"] == 4
    assert [row["title"].split()[0] for row in result["rows"]][:2] == ["mean", "untrained"]
    spectrum = result["rows"][0]["protocols"]["linear"]["scores"]
    assert spectrum["miou"]["value"] > 0.9
    assert spectrum["miou"]["low"] <= spectrum["miou"]["value"] <= spectrum["miou"]["high"]
    assert "pixels of label 0 do not count" in result["notes"]
    render(result)
    again = compare_masks(fields(), [weights], (), FAST)
    assert again == result


def test_noise_is_not_segmented(fields):
    images = fields()

    def noise(row, modalities):
        pixels = 0.14 + 0.05 * np.random.default_rng(row).normal(size=(12, 64, 64))
        return {"s2_l2a": [Grid(tuple(range(12)), pixels.astype(np.float32))]}

    images.read = noise
    result = compare_masks(images, (), (), FAST)
    assert result["rows"][0]["protocols"]["linear"]["scores"]["miou"]["value"] < 0.6


def test_labels_of_the_test_split_and_nodata_teach_nothing(fields):
    images, changed = fields(noise=0.05), fields(noise=0.05)
    test = changed.splits == "test"
    changed.crops = np.where(test[:, None, None], 3 - changed.crops, changed.crops)
    # The pixels stay those of the first.
    changed.read = images.read
    first, other = (compare_masks(i, (), (), FAST)["rows"][0] for i in (images, changed))
    right = first["protocols"]["linear"]["scores"]["pixel_accuracy"]["value"]
    wrong = other["protocols"]["linear"]["scores"]["pixel_accuracy"]["value"]
    assert right + wrong == pytest.approx(1.0)


def test_patch_maps_are_computed_once(fields, tmp_path, weights):
    options = CompareOptions(size=64, resamples=20, features=str(tmp_path))
    images = fields()
    first = compare_masks(images, [weights], (), options)
    reads = images.reads
    assert reads > 0
    assert compare_masks(images, [weights], (), options) == first
    assert images.reads == reads


def test_what_cannot_be_scored_is_refused(fields):
    with pytest.raises(UsageError, match="TerraFM weights only"):
        compare_masks(fields(), (), ("timm:resnet18",), FAST)
    with pytest.raises(UsageError, match="its protocols are linear, upernet, finetune, not knn5"):
        compare_masks(fields(), (), (), CompareOptions(protocols=["knn5"]))
    images = fields()
    images.splits = None
    with pytest.raises(UsageError, match="has no splits"):
        compare_masks(images, (), (), FAST)
    images = fields()
    images.crops[3] = 7
    with pytest.raises(
        UsageError, match="mask of field 3 in fields holds 7, its classes are 0 to 2"
    ):
        compare_masks(images, (), (), FAST)


@pytest.mark.parametrize("ignore", [0, 255, None])
def test_confusions_are_those_of_scikit_learn_without_nodata(fields, ignore):
    images = fields()
    images.ignore = ignore
    if ignore == 255:
        images.mask = lambda row, mask=images.mask: np.where(mask(row) == 0, 255, mask(row))
    task = MaskTask.of(images, torch.device("cpu"), 0)
    generator = np.random.default_rng(1)
    predicted = generator.integers(3, size=(20, 64, 64))

    def logits(rows, shape):
        assert shape == (64, 64)
        return torch.nn.functional.one_hot(torch.from_numpy(predicted[rows])).movedim(-1, 1).float()

    rows = np.arange(20)
    confusions, loss = task.evaluate(logits, rows)
    for row in rows:
        truth = images.mask(row)
        counts = truth != ignore if ignore is not None else np.ones_like(truth, bool)
        expected = confusion_matrix(truth[counts], predicted[row][counts], labels=range(3))
        np.testing.assert_array_equal(confusions[row], expected)
    # Of logits 0 and 1: the same two losses wherever right and wrong.
    right = confusions.diagonal(axis1=1, axis2=2).sum() / confusions.sum()
    assert loss == pytest.approx(np.log(2 + np.e) - right, abs=1e-5)


def test_a_set_whose_validation_pixels_all_are_nodata_is_refused(fields):
    images = fields()
    images.mask = lambda row, mask=images.mask: mask(row) * (images.splits[row] != "valid")
    with pytest.raises(UsageError, match="no pixel of the set's valid split counts"):
        compare_masks(images, (), (), FAST)

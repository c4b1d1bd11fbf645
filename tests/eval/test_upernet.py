"""UPerNet on frozen patch maps: its pyramid, what it learns, what it refuses."""

import sys

import numpy as np
import pytest
import torch

from terrafm.errors import UsageError
from terrafm.eval.segmentation import upernet
from terrafm.eval.segmentation.patch_maps import patch_maps, pyramid_blocks
from terrafm.eval.tables.common import CompareOptions, render, table_rows
from terrafm.eval.tables.segmentation import compare_masks

OPTIONS = CompareOptions(size=64, resamples=20, protocols=["upernet"], epochs=12)


@pytest.fixture
def small(monkeypatch):
    """A decoder for seconds."""
    monkeypatch.setattr(upernet, "WIDTH", 16)
    monkeypatch.setattr(upernet, "LEARNING_RATES", (1e-4, 3e-3))


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (3, (0, 1, 1, 2))]
)
def test_the_blocks_are_those_of_the_field(depth, blocks):
    assert pyramid_blocks(depth) == blocks


def test_the_decoder_sees_four_resolutions_and_gives_the_masks_shape():
    model = upernet.UPerNet(8, 3, width=4).eval()
    seen = []
    model.decoder.register_forward_pre_hook(
        lambda _, given: seen.extend(tuple(level.shape) for level in given[0][2:])
    )
    logits = model(torch.randn(2, 4, 8, 6, 6), (90, 80))
    assert logits.shape == (2, 3, 90, 80)
    assert seen == [(2, 8, side, side) for side in (24, 12, 6, 3)]


def test_every_level_and_every_parameter_matters():
    torch.manual_seed(0)
    model = upernet.UPerNet(8, 3, width=4)
    maps = torch.randn(2, 4, 8, 4, 4, requires_grad=True)
    model(maps, (16, 16)).square().mean().backward()
    assert (maps.grad.abs().sum((0, 2, 3, 4)) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_the_maps_are_the_encoders_after_those_blocks(fields, weights):
    images = fields(count=5)
    inputs = OPTIONS.inputs(images)
    spectrum, untrained, _ = table_rows(images, inputs, [weights], (), [], (0,))
    maps = patch_maps(untrained, images, inputs, levels=4).reshape(5, 4, 96, 4, 4)
    pixels = torch.from_numpy(images.read(2, ())["s2_l2a"][0].pixels)[None]
    normalised = (pixels - 0.14) / 0.04
    with torch.inference_mode():
        expected = untrained.encoder.forward_features(normalised, "s2_l2a", (0, 1, 1, 2))
    for level, found in zip(maps[2], expected, strict=True):
        np.testing.assert_allclose(level, found[0].numpy(), atol=1e-5)
    flat = patch_maps(spectrum, images, inputs, levels=4).reshape(5, 4, 12, 4, 4)
    assert (flat == flat[:, :1]).all()


@pytest.mark.slow
def test_upernet_learns_and_says_how(fields, weights, small):
    """Chance is an mIoU of about 1/3."""
    told = []
    result = compare_masks(fields(noise=0.02), [weights], (), OPTIONS, told.append)
    assert told == [f"{row['title']}: upernet" for row in result["rows"]]
    assert [row["title"].split()[0] for row in result["rows"]][:2] == ["mean", "untrained"]
    for row in result["rows"]:
        scored = row["protocols"]["upernet"]
        score = scored["scores"]["miou"]
        assert score["value"] > 0.8
        assert score["low"] <= score["value"] <= score["high"]
        assert scored["learning_rate"] == 3e-3
        assert scored["epochs"] == 12
    assert result["rows"][2]["protocols"]["upernet"]["blocks"] == [0, 1, 1, 2]
    assert "UPerNet: learning rate 0.003, 12 epochs" in render(result).caption
    assert compare_masks(fields(noise=0.02), [weights], (), OPTIONS) == result


def test_labels_of_the_test_split_teach_nothing(fields, monkeypatch):
    monkeypatch.setattr(upernet, "WIDTH", 8)
    monkeypatch.setattr(upernet, "LEARNING_RATES", (3e-3,))
    options = CompareOptions(size=32, resamples=5, protocols=["upernet"], epochs=2)
    images, changed = fields(noise=0.05), fields(noise=0.05)
    test = changed.splits == "test"
    changed.crops = np.where(test[:, None, None], 3 - changed.crops, changed.crops)
    # The pixels stay those of the first.
    changed.read = images.read
    scores = [
        compare_masks(i, (), (), options)["rows"][0]["protocols"]["upernet"]["scores"]
        for i in (images, changed)
    ]
    # Class 0, which is nodata, may be predicted: it is wrong both times.
    right, wrong = (score["pixel_accuracy"]["value"] for score in scores)
    assert 0 < right + wrong <= 1 + 1e-6
    assert right != wrong


def test_what_upernet_cannot_do_is_one_line(fields, monkeypatch):
    small_images = CompareOptions(size=16, protocols=["upernet"])
    with pytest.raises(UsageError, match="needs images of 32 pixels or more, not 16"):
        compare_masks(fields(), (), (), small_images)
    images = fields(count=5)
    images.splits = np.array(["train", "valid", "valid", "test", "test"])
    with pytest.raises(UsageError, match="two or more training images"):
        compare_masks(images, (), (), OPTIONS)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.upernet.decoder", None)
    with pytest.raises(UsageError, match=r"pip install 'terrafm\[eval\]'"):
        compare_masks(fields(), (), (), OPTIONS)


def test_upernet_is_for_masks(small_dataset, weights, refused):
    line = refused("evaluate", "compare", "--data", small_dataset, "--protocol", "upernet")
    assert "has classes: its protocols are knn20, knn5, linear, finetune, not upernet" in line

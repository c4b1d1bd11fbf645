"""Crops cut on the device against those that the data workers cut."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.config import DataConfig
from terrafm.data.samples.device_crops import resize_weights
from terrafm.data.samples.loader import RankLayout, make_batches
from terrafm.data.samples.plan import Plan
from terrafm.data.shards.dataset import Dataset
from terrafm.modalities import MODALITIES

LAYOUT = RankLayout(global_batch=6, world_size=1, rank=0, micro_batch=6)


def batches(uri, config, steps=2, seed=3):
    dataset = Dataset.open(uri)
    made = make_batches(
        dataset,
        Plan(dataset.land_cover, seed=seed, exponent=0.5),
        config,
        seed=seed,
        layout=LAYOUT,
        start_step=0,
        stop_step=steps,
        high_frequency=(10,),
    )
    return [batch.to("cpu") for batch in made]


def both_ways(uri, **changes):
    config = DataConfig(**{"global_crops": 2, "local_crops": 3, **changes})
    on_device = config.model_copy(update={"crop_on": "device"})
    return batches(uri, config), batches(uri, on_device)


@pytest.mark.parametrize(
    ("global_size", "local_size"),
    [(32, 16), (96, 48), (160, 16)],
    ids=["shrinks", "both ways", "grows"],
)
def test_crops_equal_those_of_the_workers(small_dataset, global_size, local_size):
    host, device = both_ways(small_dataset, global_size=global_size, local_size=local_size)
    assert len(host) == len(device) == 2
    for first, second in zip(host, device, strict=True):
        for field in ("drop_path_key", "high_frequency"):
            assert torch.equal(getattr(first, field), getattr(second, field))
        assert torch.equal(first.samples.weight, second.samples.weight)
        assert first.samples.tile_id == second.samples.tile_id
        for a, b in (
            (first.global_crops, second.global_crops),
            (first.local_crops, second.local_crops),
        ):
            assert a.size == b.size
            for field in fields(a):
                if field.name in ("size", "pixels") or getattr(a, field.name) is None:
                    continue
                for name, values in getattr(a, field.name).items():
                    assert torch.equal(values, getattr(b, field.name)[name])
            for name, pixels in a.pixels.items():
                assert (
                    pixels.dtype == b.pixels[name].dtype == getattr(torch, MODALITIES[name].dtype)
                )
                assert pixels.shape == b.pixels[name].shape
                difference = (pixels.to(torch.int32) - b.pixels[name].to(torch.int32)).abs()
                # cv2 rounds after each of two passes where one axis grows and one shrinks.
                assert difference.max() <= 1
                assert (difference > 0).float().mean() < 0.1


def test_missing_pixels_stay_missing_and_touch_no_other(make_dataset, tmp_path, monkeypatch):
    from terrafm.data.shards.cells import CellReader

    uri = make_dataset(tmp_path / "dataset")
    read = CellReader.read_ahead

    def with_gaps(self, *arguments, **options):
        for pixels in read(self, *arguments, **options):
            for name, array in pixels.items():
                array[:, : array.shape[1] // 3] = MODALITIES[name.rpartition("_")[0]].nodata
            yield pixels

    monkeypatch.setattr(CellReader, "read_ahead", with_gaps)
    host, device = both_ways(uri, global_size=32, local_size=16)
    missing = 0
    for first, second in zip(host, device, strict=True):
        for name, pixels in first.global_crops.pixels.items():
            other = second.global_crops.pixels[name]
            gone = pixels == MODALITIES[name].nodata
            missing += int(gone.sum())
            # A pixel whose covered ground is missing by half may fall to either side.
            agree = gone == (other == MODALITIES[name].nodata)
            assert agree.float().mean() > 0.995
            kept = agree & ~gone
            difference = pixels[kept].to(torch.int32) - other[kept].to(torch.int32)
            assert difference.abs().max() <= 1
    assert missing > 1000


def test_resizing_takes_nothing_from_behind_the_box():
    # 19 * (30 / 19) is a little more than 30 in float32.
    weights = resize_weights(torch.tensor([0]), torch.tensor([30]), 31, 19)[0]
    assert (weights[:, 30] == 0).all()


@settings(max_examples=60)
@given(st.data())
def test_resizing_keeps_the_mean_of_the_ground(data):
    length = data.draw(st.integers(1, 40))
    full = data.draw(st.integers(length, 50))
    start = data.draw(st.integers(0, full - length))
    size = data.draw(st.integers(1, 60))
    weights = resize_weights(torch.tensor([start]), torch.tensor([length]), full, size)[0]
    assert weights.shape == (size, full)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    outside = np.r_[0:start, start + length : full]
    assert (weights[:, outside] == 0).all()
    if size <= length:
        # Every input pixel counts the same: the mean is that of the box.
        inside = weights[:, start : start + length].sum(0)
        np.testing.assert_allclose(inside, size / length, rtol=1e-4)

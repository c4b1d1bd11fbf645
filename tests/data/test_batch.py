import numpy as np
import pytest
import torch

from terrafm.config import DataConfig
from terrafm.data.samples.batch import SampleInfo, assemble, normalise
from terrafm.data.samples.builder import BatchRows
from terrafm.data.samples.crops import draw_views
from terrafm.modalities import MODALITIES

CONFIG = DataConfig(global_crops=2, local_crops=3, global_size=32, local_size=16)


def numbered_batch(rows, config=CONFIG, available=None, division=None):
    """A batch in which every crop's pixels say which sample, view and modality they are."""
    names = tuple(MODALITIES)
    available = np.ones((rows, 3), dtype=bool) if available is None else available
    views = draw_views(
        config,
        names,
        seed=0,
        epochs=np.zeros(rows, dtype=np.int64),
        positions=np.arange(rows),
        available=available,
        units=16,
    )
    parts, first = [], 0
    for count in division or (rows,):
        own = views.rows(first, first + count)
        pixels = np.zeros(own.pixels, np.uint16)
        for row, view, m in np.argwhere(own.drawn).tolist():
            end = own.ends[row, view, m]
            length = MODALITIES[names[m]].channels * own.sizes[view] ** 2
            assert (pixels[end - length : end] == 0).all()
            pixels[end - length : end] = 1 + (first + row) * 100 + view * 10 + m
        assert (pixels > 0).all()
        parts.append(BatchRows(count, pixels))
        first += count
    batch = assemble(
        views,
        parts,
        high_frequency=np.arange(rows) % 2 == 0,
        samples=SampleInfo(
            tile_id=[f"t{i}" for i in range(rows)],
            epoch=np.zeros(rows, dtype=np.int64),
            position=np.arange(rows),
            weight=torch.ones(rows),
        ),
    )
    return views, batch


@pytest.mark.parametrize("division", [(5,), (2, 3), (1, 1, 1, 1, 1)])
def test_every_crop_arrives_where_it_belongs(division):
    rows = 5
    views, batch = numbered_batch(rows, division=division)
    for crops, first, count in ((batch.global_crops, 0, 2), (batch.local_crops, 2, 3)):
        assert crops.size == count * rows
        for m, (name, sensor) in enumerate(MODALITIES.items()):
            side = int(views.sizes[first])
            image = crops.image[name]
            expected = [
                crop * rows + row
                for crop in range(count)
                for row in range(rows)
                if views.drawn[row, first + crop, m]
            ]
            assert image.tolist() == expected
            pixels = crops.pixels[name]
            assert pixels.shape == (len(expected), sensor.channels, side, side)
            assert pixels.dtype == getattr(torch, sensor.dtype)
            crop, row = image.numpy() // rows, image.numpy() % rows
            codes = 1 + row * 100 + (first + crop) * 10 + m
            assert (pixels.to(torch.int64) == torch.from_numpy(codes)[:, None, None, None]).all()
            student = views.student[row, first + crop, m]
            np.testing.assert_array_equal(crops.student[name].numpy(), student)
            if first == 0:
                teacher = views.teacher[row, crop, m]
                np.testing.assert_array_equal(crops.teacher[name].numpy(), teacher)
    assert batch.local_crops.teacher is None
    np.testing.assert_array_equal(batch.drop_path_key.numpy(), views.drop_path_key.T)
    assert batch.high_frequency.tolist() == [True, False, True, False, True]


def test_absent_modalities_and_no_local_crops_keep_their_shape():
    only_radar = np.tile([True, False, False], (2, 1))
    _, batch = numbered_batch(2, CONFIG.model_copy(update={"local_crops": 0}), only_radar)
    assert batch.local_crops is None
    assert batch.global_crops.pixels["s2_l2a"].shape == (0, 12, 32, 32)
    assert len(batch.global_crops.image["s2_l2a"]) == 0
    assert batch.drop_path_key.shape == (2, 2)


def test_moving_keeps_everything():
    _, batch = numbered_batch(2)
    moved = batch.to("meta")
    assert moved.global_crops.pixels["s1"].device.type == "meta"
    assert moved.local_crops.image["s1"].device.type == "cpu"
    # How many are drawn decides shapes: it stays where it can be asked without waiting.
    assert moved.local_crops.student["s1"].device.type == "cpu"
    assert moved.samples.weight.device.type == "meta"
    assert moved.samples.tile_id == batch.samples.tile_id
    assert batch.samples.weight.device.type == "cpu"


@pytest.mark.parametrize("name", MODALITIES)
def test_normalise_against_float64(name):
    sensor = MODALITIES[name]
    generator = np.random.default_rng(0)
    low, high = (-5000, 500) if name == "s1" else (1, 20000)
    stored = generator.integers(low, high, (2, sensor.channels, 5, 7)).astype(sensor.dtype)
    stored[0, :, 2] = sensor.nodata
    mean = generator.normal(-12 if name == "s1" else 0.2, 0.1, sensor.channels)
    std = generator.uniform(0.05, 3, sensor.channels)
    result = normalise(
        torch.from_numpy(stored),
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(std, dtype=torch.float32),
        name,
    )
    physical = stored.astype(np.float64) * sensor.scale
    expected = (physical - mean[:, None, None]) / std[:, None, None]
    expected[stored == sensor.nodata] = 0
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-4, rtol=1e-5)
    assert (result[0, :, 2] == 0).all()

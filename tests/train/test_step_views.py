"""What a network is given of a micro-batch, against each image by itself."""

import itertools

import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.batch import normalise
from terrafm.data.samples.loader import make_batches
from terrafm.modalities import MODALITIES
from terrafm.models.packing import patchify
from terrafm.train.step.views import ViewPacker
from terrafm.train.worker.setup import TrainingSetup

ORDER = ("s2_l2a", "s2_l1c", "s1")


@pytest.fixture(scope="module")
def setup(small_dataset):
    overrides = ["train.global_batch=6", "train.micro_batch=6", "train.steps=1"]
    return TrainingSetup.open(load_config("demo", overrides), small_dataset)


@pytest.fixture(scope="module")
def batch(setup):
    return next(itertools.islice(make_batches(**setup.stream_options(setup.layout(0, 1), 0)), 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_every_patch_has_its_pixels_and_its_place(setup, batch, who, dtype):
    crops = [batch.global_crops] + ([batch.local_crops] if who == "student" else [])
    drawn = [getattr(each, who) for each in crops]
    packer = ViewPacker(setup.statistics, ORDER, device=torch.device("cpu"), dtype=dtype)
    packed = packer.pack(crops, drawn)
    assert packed.positions == sum(g[0] * g[1] * g[2] for g in packed.grids)
    expected = {m: {} for m in ORDER}
    base = 0
    for each, chosen, (images, height, width) in zip(crops, drawn, packed.grids, strict=True):
        for m, pixels in each.pixels.items():
            ready = patchify(normalise(pixels, *setup.statistics[m], m), 16)
            for row in chosen[m].nonzero().flatten().tolist():
                first = base + int(each.image[m][row]) * height * width
                for number, patch in enumerate(ready[row].flatten(0, 1)):
                    expected[m][first + number] = patch.flatten()
        base += images * height * width
    start = 0
    for number, m in enumerate(ORDER):
        count = len(packed.patches[m])
        position, slot = packed.place[:, start : start + count]
        start += count
        assert torch.equal(slot, position + number * packed.positions)
        assert position.tolist() == list(expected[m])
        assert packed.patches[m].dtype == dtype
        wanted = torch.stack(list(expected[m].values()))
        slack = 1e-6 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(packed.patches[m].float(), wanted, rtol=slack, atol=slack)
    assert start == packed.place.shape[1]


def test_nodata_is_exactly_zero(setup, batch):
    crops = batch.global_crops
    for pixels in crops.pixels.values():
        pixels[:, 0, :4] = 0 if pixels.dtype == torch.uint16 else -32768
    packer = ViewPacker(setup.statistics, ORDER, device=torch.device("cpu"))
    packed = packer.pack([crops], [crops.student])
    for m, patches in packed.patches.items():
        stored = patchify(crops.pixels[m], 16)[crops.student[m]].reshape(patches.shape)
        missing = stored == MODALITIES[m].nodata
        assert missing.any()
        assert not patches[missing].any()
        assert (patches[~missing].abs() > 1e-6).float().mean() > 0.99

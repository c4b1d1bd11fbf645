"""Micro-batches on their way to a GPU, and what stays on the CPU."""

import itertools

import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.train.step import prefetch
from terrafm.train.step.prefetch import InFlight, Transfer
from terrafm.train.worker.setup import TrainingSetup


@pytest.fixture(scope="module")
def batches(small_dataset):
    overrides = ["train.global_batch=4", "train.steps=3", "data.global_size=32"]
    setup = TrainingSetup.open(load_config("demo", overrides), small_dataset)
    return list(make_batches(**setup.stream_options(setup.layout(0, 1), 0)))


@pytest.mark.parametrize("overlap", [False, True])
def test_on_a_cpu_batches_are_handed_through(batches, overlap):
    through = Transfer(torch.device("cpu"), overlap)
    assert all(through(batch) is batch for batch in batches)


def test_what_decides_shapes_stays_on_the_cpu(batches):
    moved = batches[0].to("meta")
    for crops in (moved.global_crops, moved.local_crops):
        for drawn in (crops.student, crops.teacher or {}):
            assert {mask.device.type for mask in drawn.values()} <= {"cpu"}
        assert {pixels.device.type for pixels in crops.pixels.values()} == {"meta"}
        assert {index.device.type for index in crops.image.values()} == {"cpu"}


def test_a_batch_in_flight_is_waited_for_once(batches, monkeypatch):
    waited = []

    class Stream:
        def wait_event(self, event):
            waited.append(event)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    batch = batches[0]
    flying = InFlight(batch, "arrived", batch.samples)
    assert flying.to("cpu") is batch
    assert waited == ["arrived"]
    assert flying.samples.tile_id == batch.samples.tile_id
    with pytest.raises(AssertionError):
        flying.to("cpu")


def test_all_tensors_of_a_batch_are_found(batches, monkeypatch):
    monkeypatch.setattr(prefetch, "_on_gpu", lambda tensor: True)
    found = list(prefetch.tensors(batches[0]))
    crops = [batches[0].global_crops, batches[0].local_crops]
    pixels = [t for c in crops for t in itertools.chain(c.pixels.values(), c.image.values())]
    assert {id(t) for t in pixels} <= {id(t) for t in found}
    assert any(t is batches[0].samples.weight for t in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies beside computation need a GPU")
def test_copies_beside_computation_bring_the_same_batch(batches):
    device = torch.device("cuda")
    begin = Transfer(device, overlap=True)
    flying = [begin(batch) for batch in batches]
    for batch, coming in zip(batches, flying, strict=True):
        expected, found = batch.to(device), coming.to(device)
        for a, b in zip(prefetch.tensors(expected), prefetch.tensors(found), strict=True):
            assert torch.equal(a, b)

"""A run keeps the version of the dataset that it began with, though a newer one exists."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from terrafm.config import load_config
from terrafm.data.ingest.adopt import record_of
from terrafm.data.samples.loader import make_batches
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.writer import write_shard
from terrafm.errors import UsageError
from terrafm.train.checkpoints.store import load_network, save_checkpoint
from terrafm.train.driver.checks import check_output, open_setup
from terrafm.train.driver.pretrain import _write_config, pretrain
from terrafm.train.worker.loop import WorkerTask, task_arguments
from terrafm.train.worker.setup import TrainingSetup

SETTINGS = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32"]


@pytest.fixture
def data(make_dataset, tmp_path):
    return make_dataset(tmp_path / "data")


def grow(uri):
    """A second version with one more tile."""
    dataset = Dataset.open(uri)
    record = record_of(dataset.index.slice(3, 1).to_pylist()[0], dataset.read_tile(3))
    more = write_shard(uri, "more", [replace(record, tile_id="a_new_tile")], dataset.groups)
    entries = [ShardEntry.read(uri, f"part-{k:05d}") for k in range(3)]
    manifest = commit_dataset(
        uri,
        [*entries, more],
        tile_size=dataset.tile_size,
        gsd=dataset.gsd,
        groups=dataset.groups,
        statistics=dataset.statistics,
        legend=dataset.legend,
        report={},
    )
    assert manifest.version == 2


def test_with_a_checkpoint(data, tmp_path):
    config, output = load_config("demo", SETTINGS), str(tmp_path / "run")
    first = TrainingSetup.open(config, data)
    distillation = first.plain_distillation()
    save_checkpoint(
        f"{output}/checkpoints", first.state(2, distillation.engine.state(), distillation)
    )
    grow(data)
    setup = open_setup(config, data, output)
    assert (setup.dataset.manifest.version, len(setup.dataset)) == (1, 11)
    assert setup.plan.hash == first.plan.hash
    assert check_output(setup, output).resumed_from == 2
    # Both are one sequence, step by step.
    options = [some.stream_options(some.layout(0, 1), 2) for some in (first, setup)]
    for expected, found in zip(*(make_batches(**o) for o in options), strict=True):
        assert found.samples.tile_id == expected.samples.tile_id
        np.testing.assert_array_equal(found.samples.position, expected.samples.position)
    # Row numbers have moved in the new version: the old one's plan would mean other tiles.
    assert Dataset.open(data).tile_ids[0] == "a_new_tile"
    fresh = open_setup(config, data, str(tmp_path / "another"))
    assert fresh.dataset.manifest.version == 2
    with pytest.raises(UsageError, match="has changed since"):
        check_output(fresh, output)


def test_before_the_first_checkpoint(data, tmp_path):
    config, output = load_config("demo", SETTINGS), str(tmp_path / "run")
    first = TrainingSetup.open(config, data)
    _write_config(first, output)
    record = json.loads(Path(output, "dataset.json").read_text())
    assert record == {"uri": data, "version": 1, "fingerprint": first.dataset.fingerprint}
    grow(data)
    assert open_setup(config, data, output).dataset.manifest.version == 1


def test_workers_open_the_version_of_the_driver(data, tmp_path):
    setup = TrainingSetup.open(load_config("demo", SETTINGS), data)
    task = WorkerTask(**task_arguments(setup, str(tmp_path / "run"), 1.0, None))
    grow(data)
    assert task.fingerprint == setup.dataset.fingerprint
    again = TrainingSetup.open(setup.config, task.data, task.fingerprint)
    assert again.dataset.manifest == setup.dataset.manifest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_resumed_run_ends_as_if_the_dataset_had_not_grown(data, tmp_path):
    small = [*SETTINGS, "train.checkpoint_every=2", "train.precision=float32"]
    try:
        whole = pretrain(load_config("demo", small), data, str(tmp_path / "whole"))
        # Back to the state after two steps; then the dataset grows.
        output = shutil.copytree(whole.output, tmp_path / "run")
        shutil.rmtree(output / "checkpoints" / "step_00000004")
        grow(data)
        resumed = pretrain(load_config("demo", small), data, str(output))
    finally:
        ray.shutdown()
    assert resumed.resumed_from == 2
    expected, found = (
        load_network(whole.checkpoint, "teacher"),
        load_network(resumed.checkpoint, "teacher"),
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())

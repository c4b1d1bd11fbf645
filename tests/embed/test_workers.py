"""By Ray's workers: the same numbers whoever computes, every row once, whatever is killed."""

from dataclasses import replace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.errors import TerraFMError
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.job import (
    EncoderFeatures,
    FeatureWorkers,
    extract_features,
    untrained_spec,
)
from terrafm.eval.features.readouts import Readout
from terrafm.ray import parts

FUSED = EmbedOptions(modalities=["s1", "s2_l2a"], workers=0)


@pytest.fixture
def parts_of_four(monkeypatch):
    monkeypatch.setattr(parts, "_LEAST_ROWS", 4)


def rows_of(output):
    table = pq.read_table(output / "tiles")
    return table["tile_id"].to_pylist(), np.stack(table["embedding"].to_numpy())


def largest_difference(output, expected):
    names, vectors = rows_of(expected)
    ids, found = rows_of(output)
    assert ids == names
    assert len(set(names)) == 11
    return np.abs(found - vectors).max()


def test_two_workers_give_the_same_embeddings_as_one_process(
    local_ray, parts_of_four, small_dataset, tiny_weights, tmp_path
):
    embed(tiny_weights, small_dataset, tmp_path / "process", FUSED)
    seen = []
    options = replace(FUSED, workers=2)
    embed(
        tiny_weights, small_dataset, tmp_path / "two", options,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert largest_difference(tmp_path / "two", tmp_path / "process") <= 1e-5
    assert seen[0] == (0, 11)
    assert seen[-1] == (11, 11)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_workers_take_the_readout_too(
    local_ray, parts_of_four, small_dataset, tiny_weights, tmp_path
):
    options = replace(FUSED, readout=Readout.MEAN_STD)
    embed(tiny_weights, small_dataset, tmp_path / "process", options)
    embed(tiny_weights, small_dataset, tmp_path / "one", replace(options, workers=1))
    assert largest_difference(tmp_path / "one", tmp_path / "process") <= 1e-5
    assert rows_of(tmp_path / "one")[1].shape == (11, 192)


@pytest.mark.slow
def test_the_same_numbers_by_one_worker_three_or_another_batch(
    local_ray, parts_of_four, small_dataset, tiny_weights, tmp_path
):
    """Of embedding, and of evaluation's features."""
    runs = {
        "process": FUSED,
        "batch": replace(FUSED, batch=1),
        "one": replace(FUSED, workers=1),
        "three": replace(FUSED, workers=3, batch=5),
    }
    for name, options in runs.items():
        embed(tiny_weights, small_dataset, tmp_path / name, options)
        assert largest_difference(tmp_path / name, tmp_path / "process") <= 1e-5
    images = ShardTiles(small_dataset)
    encoders = (tiny_weights, untrained_spec("terrafm_tiny", 0))
    sensors = (("s2_l2a",), ("s1", "s2_l2a"))
    extractor = EncoderFeatures(encoders, sensors, images.statistics(), 48, 4)
    whole = extract_features(extractor, images, torch.device("cpu"))
    for workers, batch in ((1, 4), (3, 1)):
        found = extract_features(
            replace(extractor, batch=batch), images, torch.device("cpu"), FeatureWorkers(workers)
        )
        assert np.abs(found - whole).max() <= 1e-5


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_line_and_what_is_done_stays(
    local_ray, parts_of_four, make_dataset, tiny_weights, tmp_path
):
    uri = make_dataset(tmp_path / "dataset")
    shard = tmp_path / "dataset" / "shards" / "part-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 3])
    options = replace(FUSED, workers=2)
    with pytest.raises(TerraFMError) as caught:
        embed(tiny_weights, uri, tmp_path / "out", options)
    assert "part-00002.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "embedding.json").exists()
    shard.write_bytes(content)
    report = embed(tiny_weights, uri, tmp_path / "out", options)
    # In Hilbert order the shard's tiles are in the second of three parts, of 4, 4 and 3 rows.
    assert report.resumed in (3, 4, 7)
    names, _ = rows_of(tmp_path / "out")
    assert sorted(names) == [f"tile_{i:02d}" for i in range(11)]


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing_but_time(
    local_ray, parts_of_four, small_dataset, tiny_weights, tmp_path
):
    killed = []

    def kill_one(done, total):
        if killed or not done:
            return
        for process in psutil.Process().children(recursive=True):
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    embed(tiny_weights, small_dataset, tmp_path / "process", FUSED)
    options = replace(FUSED, workers=1)
    embed(tiny_weights, small_dataset, tmp_path / "out", options, progress=kill_one)
    assert len(killed) == 1
    assert largest_difference(tmp_path / "out", tmp_path / "process") <= 1e-5

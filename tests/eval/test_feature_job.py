"""Features made in parts: the same numbers, kept until all are made."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from terrafm.errors import UsageError
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features import job as feature_job
from terrafm.eval.features.job import (
    EncoderFeatures,
    FeatureWorkers,
    extract_features,
    untrained_spec,
)
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.ray import parts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "_LEAST_ROWS", 3)


@pytest.fixture
def extractor(small_dataset, weights):
    return EncoderFeatures(
        (weights, untrained_spec("terrafm_tiny", 0)), (("s1",), ("s1", "s2_l2a")),
        ShardTiles(small_dataset).statistics(), 48, 4,
    )  # fmt: skip


def test_parts_and_batches_change_nothing(small_dataset, extractor):
    images = ShardTiles(small_dataset)
    whole = extract_features(extractor, images, CPU)
    assert whole.shape == (11, 4 * 96)
    for batch in (1, 5):
        other = replace(extractor, batch=batch)
        found = extract_features(other, images, CPU, FeatureWorkers(0))
        assert np.abs(found - whole).max() <= 1e-5


def test_a_call_that_was_interrupted_goes_on(small_dataset, extractor, tmp_path, monkeypatch):
    images, parts = ShardTiles(small_dataset), str(tmp_path / "parts")
    whole = extract_features(extractor, images, CPU)
    made = []
    plain = EncoderFeatures.open

    def failing(self, device):
        make = plain(self, device)

        def counted(images, rows):
            if len(made) == 2:
                raise UsageError("interrupted")
            made.append(rows.start)
            return make(images, rows)

        return counted

    monkeypatch.setattr(EncoderFeatures, "open", failing)
    with pytest.raises(UsageError, match="interrupted"):
        extract_features(extractor, images, CPU, FeatureWorkers(0), parts)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "000000000-000000003.npy", "000000003-000000006.npy",
    ]  # fmt: skip
    monkeypatch.setattr(EncoderFeatures, "open", plain)
    (tmp_path / "parts" / "000000003-000000006.npy").write_bytes(b"damaged")
    seen = []
    workers = FeatureWorkers(0, progress=lambda done, total: seen.append((done, total)))
    found = extract_features(extractor, images, CPU, workers, parts)
    assert np.abs(found - whole).max() <= 1e-5
    assert seen == [(6, 11), (9, 11), (11, 11)]


def test_the_table_is_the_same_and_leaves_no_parts(small_dataset, weights, tmp_path):
    plain = CompareOptions(modalities=["s2_l2a"], size=32, resamples=20, protocols=["knn5"])
    parted = replace(plain, features=str(tmp_path / "features"), workers=0)
    baselines = ["timm:resnet18@" + _resnet(tmp_path)]
    first, second = (compare(small_dataset, [weights], baselines, o) for o in (plain, parted))
    for one, other in zip(first["rows"], second["rows"], strict=True):
        assert one["protocols"] == other["protocols"]
        assert one["title"] == other["title"]
    names = [path.name for path in (tmp_path / "features").iterdir()]
    # Mean spectrum, five untrained encoders, the weights, and the other encoder.
    assert len(names) == 8
    assert all(name.endswith(".parquet") for name in names)


def _resnet(folder):
    import safetensors.torch
    import timm

    model = timm.create_model("resnet18", pretrained=False, num_classes=0)
    safetensors.torch.save_file(model.state_dict(), folder / "resnet.safetensors")
    return str(folder / "resnet.safetensors")


def test_a_set_that_changes_meanwhile_is_refused(small_dataset, extractor):
    images = ShardTiles(small_dataset)
    work = feature_job.OpenFeatureWork(
        extractor, small_dataset, feature_job.OpenOptions(), "another", None
    )
    with pytest.raises(UsageError, match="changed while it was used"):
        work("cpu")
    changed = EncoderFeatures(
        extractor.encoders[:1], extractor.choices, extractor.normalisation, 48, 4, ("another",)
    )
    with pytest.raises(UsageError, match="changed while they were used"):
        extract_features(changed, images, CPU)

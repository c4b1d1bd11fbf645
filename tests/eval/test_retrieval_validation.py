"""Retrieval as what a run is validated by, against `terrafm evaluate retrieval`."""

import re

import numpy as np
import pytest
import torch

from terrafm.config import load_config
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.retrieval.checkpoints import RetrievalSample, measure_retrieval
from terrafm.eval.retrieval.evaluate import RetrievalOptions, evaluate_retrieval
from terrafm.eval.validation import CheckpointValidation
from terrafm.export import export_checkpoint
from terrafm.models.encoder import build_encoder
from terrafm.train.checkpoints.validations import ValidationTask, open_validation

ONLY = "validation.scores=[retrieval]"


def task_of(data, *settings):
    keys = ["train.checkpoint_every=2", "validation.every_steps=2", *settings]
    return ValidationTask(load_config("demo", keys), data, Dataset.open(data).fingerprint)


def validation_of(data, *settings):
    return CheckpointValidation(task_of(data, *settings))


def expected_of(checkpoint, data, folder, samples):
    """Metrics and tiles of the weights' own rows, as the command gives them."""
    (weights, *_), _ = export_checkpoint(checkpoint, str(folder / "weights"), "safetensors")
    result = evaluate_retrieval(weights, data, RetrievalOptions(samples=samples, resamples=2))
    values = {
        f"retrieval/{task['task'].replace('>', '-to-')}/{metric}": row["value"]
        for task in result["tasks"]
        for metric, row in task["shifted"]["rows"]["weights"].items()
    }
    return values, result


@pytest.mark.parametrize("samples", [1000, 10])
def test_a_checkpoint_scores_as_its_exported_weights_do(
    checkpoint, small_dataset, two_dates, tmp_path, samples
):
    validation = validation_of(
        small_dataset, ONLY, f"validation.data={two_dates}", f"validation.samples={samples}"
    )
    found = validation.score(checkpoint)
    assert sorted(found["metrics"]) == sorted(validation.check())
    expected, result = expected_of(checkpoint, two_dates, tmp_path, samples)
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
    # Neither all found nor none: equal numbers are no accident.
    assert len({v for name, v in expected.items() if "recall" in name} - {0, 1}) > 2
    assert {"retrieval/s1-to-s2_l2a/recall10", "retrieval/s2_l1c-to-later/recall1"} <= set(expected)
    assert set(found) == {"metrics", "samples", "data", "retrieval"}
    told = found["retrieval"]
    assert (told["samples"], told["data"]) == (result["tiles"], two_dates)
    assert (found["samples"], found["data"]) == (result["tiles"], two_dates)
    assert told["tasks"] == {
        task["task"].replace(">", "-to-"): {"n": task["n"], "candidates": task["candidates"]}
        for task in result["tasks"]
    }


def test_an_archive_without_labels_is_scored_by_its_own_tiles(checkpoint, make_dataset, tmp_path):
    uri = make_dataset(tmp_path / "data", classes=(0,) * 9)
    with pytest.raises(UsageError, match=r"one land-cover class.*validation\.scores=\[retrieval\]"):
        validation_of(uri).check()
    found = validation_of(uri, ONLY).score(checkpoint)
    assert (found["samples"], found["data"]) == (9, uri)
    # One date of each place: sensors only.
    assert set(found["retrieval"]["tasks"]) == {
        f"{a}-to-{b}" for a in Dataset.open(uri).modalities for b in Dataset.open(uri).modalities
        if a != b
    }  # fmt: skip
    expected, _ = expected_of(checkpoint, uri, tmp_path, 1000)
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)


def test_both_kinds_where_the_labelled_set_has_no_pairs(
    checkpoint, small_dataset, write_image, tmp_path
):
    """Neighbours on a folder of classes, retrieval on the run's own tiles."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(3):
            pixels = rng.integers(900, 1100, (13, 16, 16)).astype(np.uint16)
            write_image(tmp_path / "set" / name / f"{number}.tif", pixels)
    data = f"validation.data={tmp_path / 'set'}"
    both = validation_of(small_dataset, "validation.scores=[knn,retrieval]", data)
    found = both.score(checkpoint)
    assert tuple(sorted(found["metrics"])) == tuple(sorted(both.check()))
    assert (found["samples"], found["data"]) == (6, str(tmp_path / "set"))
    assert (found["retrieval"]["samples"], found["retrieval"]["data"]) == (11, small_dataset)
    neighbours = validation_of(small_dataset, data).score(checkpoint)
    alone = validation_of(small_dataset, ONLY).score(checkpoint)
    assert found["metrics"] == neighbours["metrics"] | alone["metrics"]
    assert found["per_class"] == neighbours["per_class"]
    with pytest.raises(UsageError, match="is no dataset of terrafm ingest: retrieval takes one"):
        validation_of(small_dataset, ONLY, data).check()


def test_features_that_are_not_finite_have_no_scores(two_dates):
    encoder = build_encoder("terrafm_tiny").eval()
    with torch.no_grad():
        encoder.norm.weight.fill_(torch.nan)
    images = ShardTiles(two_dates)
    sample = RetrievalSample.draw(images, ["s1", "s2_l2a"], 20)
    found = measure_retrieval(
        encoder, sample, images.statistics(), size=32, batch=8, device=torch.device("cpu")
    )
    assert found == dict.fromkeys(sample.metric_names())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([ONLY], "knn20/s2_l2a/accuracy is no metric .* are retrieval/s1-to-s2_l1c/recall1"),
        ([ONLY, "data.modalities=[s1]"], "retrieval among at most 1000 .* no tile has two of s1"),
        ([ONLY, "validation.data=nowhere"], "labelled set /.*nowhere does not exist"),
        (["validation.metric=retrieval/s1-to-s2_l2a/recall1"], "is no metric .* are knn20/s1"),
    ],
)  # fmt: skip
def test_what_cannot_be_retrieved_is_refused(settings, message, small_dataset):
    with pytest.raises(UsageError, match=message):
        open_validation(task_of(small_dataset, *settings), CheckpointValidation)


def test_the_command_refuses_before_the_run_begins(small_dataset, refused, tmp_path):
    settings = (ONLY, "data.modalities=[s2_l2a]", "validation.every_steps=10",
                "train.checkpoint_every=10", "train.steps=10")  # fmt: skip
    line = refused(
        "pretrain", "--config", "demo", "--data", small_dataset, "--output", tmp_path / "run",
        *(word for setting in settings for word in ("--set", setting)),
    )  # fmt: skip
    assert "nothing to retrieve" in line
    assert not (tmp_path / "run").exists()


def test_every_tracker_takes_the_names(two_dates, small_dataset):
    """MLflow's rule, of version 3; TensorBoard and Weights & Biases take more."""
    names = (*validation_of(two_dates, ONLY).check(), *validation_of(small_dataset).check())
    assert "retrieval/s2_l1c-to-later/recall1" in names
    assert [name for name in names if not re.fullmatch(r"[/\w.\- ]+", name)] == []

"""What a run is validated by, against scikit-learn and against `terrafm evaluate knn`."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from terrafm.config import load_config
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.eval.datasets.sample import draw_sample
from terrafm.eval.probes.knn import evaluate_knn
from terrafm.eval.validation import CheckpointValidation, measure
from terrafm.export import export_checkpoint
from terrafm.train.checkpoints.validations import ValidationTask, open_validation

COUNTS = {"forest": 40, "water": 25, "ice": 5, "bog": 3, "grass": 30, "town": 12}
CLASSES = tuple(COUNTS)


def labelled(counts=COUNTS, splits=None, seed=0):
    """A set without pixels."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    labels = np.random.default_rng(seed).permutation(labels)
    return SimpleNamespace(
        uri="here",
        names=[f"image {i}" for i in range(len(labels))],
        classes=tuple(counts),
        labels=labels,
        groups=np.arange(len(labels)),
        splits=splits,
        modalities=("s1", "s2_l2a"),
        bands={},
    )


def features_of(labels, width=6, noise=0.7, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(9, width))[labels] + noise * generator.normal(
        size=(len(labels), width)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("name", "k"), [("knn20", 20), ("knn5", 5)])
def test_each_class_agrees_with_scikit_learn(name, k):
    sample = draw_sample(labelled(), 1000)
    labels = sample.images.labels
    features = features_of(labels)
    found = measure({"s1": features}, sample)
    # Equal votes are possible among whole numbers only, and go to the lower class in both.
    weights = (lambda d: np.exp((1 - d) / 0.07)) if name == "knn20" else "uniform"
    reference = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
    predicted = cross_val_predict(reference, features, labels, cv=LeaveOneOut())
    recall = recall_score(labels, predicted, average=None)
    by_class = found["per_class"]["s1"]
    assert {c: row["n"] for c, row in by_class.items()} == COUNTS
    assert [by_class[c][name] for c in CLASSES] == pytest.approx(recall, abs=1e-6)
    metrics = found["metrics"]
    assert metrics[f"{name}/s1/accuracy"] == pytest.approx((predicted == labels).mean(), abs=1e-6)
    balanced = balanced_accuracy_score(labels, predicted)
    assert metrics[f"{name}/s1/balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)
    assert found["tail"] == ["ice", "bog"]
    assert metrics[f"{name}/s1/tail_accuracy"] == pytest.approx(recall[[2, 3]].mean(), abs=1e-6)


def test_a_sample_is_bounded_equal_over_classes_and_always_the_same():
    sample = draw_sample(labelled(), 60)
    counts = np.bincount(sample.images.labels)
    # All of the rare ones; what they leave is shared by the others.
    assert counts.sum() == 60
    assert counts[[2, 3]].tolist() == [5, 3]
    assert counts[5] == 12
    assert sorted(counts[[0, 1, 4]].tolist()) == [13, 13, 14]
    assert draw_sample(labelled(), 60).images.names == sample.images.names
    # Rare is what is rare in the whole set.
    assert [CLASSES[c] for c in draw_sample(labelled(), 12).tail] == ["ice", "bog"]


def test_of_a_set_with_splits_training_votes_for_validation_and_the_test_stays_unseen():
    count = sum(COUNTS.values())
    splits = np.array(["train", "valid", "test"])[np.arange(count) % 3]
    images = labelled(splits=splits)
    sample = draw_sample(images, 20)
    kept = np.array([int(name.split()[1]) for name in sample.images.names])
    assert set(splits[kept[sample.scored]]) == {"valid"}
    assert set(splits[kept[sample.bank]]) == {"train"}
    assert len(sample.scored) == len(sample.bank) == 20
    features = features_of(sample.images.labels)
    found = measure({"s1": features}, sample)["metrics"]["knn5/s1/accuracy"]
    reference = KNeighborsClassifier(5, metric="cosine", algorithm="brute")
    reference.fit(features[sample.bank], sample.images.labels[sample.bank])
    expected = reference.score(features[sample.scored], sample.images.labels[sample.scored])
    assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UsageError, match="no images in valid"):
        draw_sample(labelled(splits=np.full(count, "train")), 20)


def test_neighbours_of_the_same_place_do_not_vote():
    images = labelled({"a": 30, "b": 30})
    # Of each pair of one place, both images are the same; the next place is of the other class.
    images.labels = np.arange(60) // 2 % 2
    images.groups = np.arange(60) // 2
    angle = np.repeat(np.linspace(0, 3, 30), 2)
    features = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    rows = measure({"s1": features}, draw_sample(images, 60))["metrics"]
    assert rows["knn5/s1/accuracy"] < 0.5
    images.groups = np.arange(60)
    assert measure({"s1": features}, draw_sample(images, 60))["metrics"]["knn5/s1/accuracy"] < 1


def test_features_that_are_not_finite_have_no_scores():
    sample = draw_sample(labelled(), 1000)
    broken = np.full((len(sample.images.labels), 4), np.nan, np.float32)
    found = measure({"s1": broken}, sample)
    assert set(found["metrics"].values()) == {None}


def test_a_checkpoint_scores_as_its_exported_weights_do(checkpoint, small_dataset, tmp_path):
    config = load_config("demo", ["train.checkpoint_every=2", "validation.every_steps=2"])
    fingerprint = Dataset.open(small_dataset).fingerprint
    validation = CheckpointValidation(ValidationTask(config, small_dataset, fingerprint))
    found = validation.score(checkpoint)
    assert tuple(sorted(found["metrics"])) == tuple(sorted(validation.check()))
    assert (found["samples"], found["data"]) == (11, small_dataset)
    assert found["tail"] == ["class 40", "class 50"]
    (weights, *_), _ = export_checkpoint(checkpoint, str(tmp_path / "w"), "safetensors")
    expected = evaluate_knn(weights, small_dataset, size=64, baselines=False)["by_modality"]
    for title, row in expected.items():
        for name in ("knn20", "knn5"):
            assert found["metrics"][f"{name}/{title}/accuracy"] == pytest.approx(
                row[name], abs=1e-6
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=nowhere"], "labelled set /.*nowhere does not exist"),
        (["data=copernicus:nothing@here"], "copernicus:nothing@/.*here: expected copernicus:NAME"),
        (["metric=knn20/s2/accuracy"], "metric=knn20/s2/accuracy is no metric .* are knn20/s1"),
    ],
)
def test_what_cannot_be_validated_is_refused_in_one_line(settings, message, small_dataset):
    keys = ["train.checkpoint_every=1000", "validation.every_steps=1000"]
    keys += [f"validation.{setting}" for setting in settings]
    fingerprint = Dataset.open(small_dataset).fingerprint
    task = ValidationTask(load_config("demo", keys), small_dataset, fingerprint)
    with pytest.raises(UsageError, match=message):
        open_validation(task, CheckpointValidation)


def test_a_set_without_the_runs_modalities_is_refused(small_dataset, tmp_path, write_image):
    for name in ("a", "b"):
        write_image(tmp_path / name / "1.tif", np.full((13, 16, 16), 1000, np.uint16))
    task = ValidationTask(
        load_config(None, ["validation.every_steps=1000", f"validation.data={tmp_path}",
                           "data.modalities=[s1]"]),
        small_dataset, Dataset.open(small_dataset).fingerprint,
    )  # fmt: skip
    with pytest.raises(UsageError, match="has s2_l1c, the run trains on s1: nothing to validate"):
        CheckpointValidation(task).check()


def test_every_steps_must_meet_the_checkpoints_and_needs_to_be_told_how(small_dataset):
    with pytest.raises(UsageError, match=r"must be a multiple of train.checkpoint_every=7"):
        load_config(None, ["train.checkpoint_every=7", "validation.every_steps=10"])
    task = ValidationTask(load_config(None, ["validation.every_steps=1000"]), small_dataset, "")
    with pytest.raises(UsageError, match=r"validation\.every_steps=1000 needs to be told how"):
        open_validation(task, None)
    assert open_validation(ValidationTask(load_config(None), small_dataset, ""), None) is None

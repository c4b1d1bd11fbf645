"""Scores against scikit-learn and torchmetrics on fixed predictions; intervals that hold."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassJaccardIndex

from terrafm.eval.metrics import (
    average_precisions,
    confusion,
    multi_label_scores,
    resampled_rows,
    segmentation_scores,
    single_label_scores,
)


def predictions(n=200, classes=6, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes - 1, size=n)  # the last class never occurs
    predicted = np.where(generator.random(n) < 0.6, labels, generator.integers(classes, size=n))
    return predicted, labels


def test_one_label_agrees_with_scikit_learn():
    predicted, labels = predictions()
    scores = single_label_scores(predicted, labels, 6, np.arange(200), resamples=50)
    seen = sorted(set(labels))
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.recall_score(labels, predicted, labels=seen, average="macro"),
        "f1_macro": sk.f1_score(labels, predicted, average="macro"),
    }
    assert {name: s.value for name, s in scores.items()} == pytest.approx(expected, abs=1e-6)
    for score in scores.values():
        assert score.low < score.value < score.high


def test_every_draw_of_the_bootstrap_is_scored_as_scikit_learn_would():
    predicted, labels = predictions(n=40)
    groups = np.arange(40)
    rows = resampled_rows(groups, 30, seed=3)
    by_hand = [sk.f1_score(labels[r], predicted[r], average="macro") for r in rows]
    low, high = np.quantile(by_hand, [0.025, 0.975])
    score = single_label_scores(predicted, labels, 6, groups, resamples=30, seed=3)["f1_macro"]
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-6)


def test_the_seed_fixes_the_interval():
    predicted, labels = predictions()
    a, b, c = (
        single_label_scores(predicted, labels, 6, np.arange(200), resamples=100, seed=s)
        for s in (1, 1, 2)
    )
    assert a == b
    assert a["accuracy"] != c["accuracy"]
    assert a["accuracy"].value == c["accuracy"].value


def test_the_interval_of_accuracy_is_the_binomial_one():
    labels = np.zeros(400, np.int64)
    predicted = (np.arange(400) >= 320).astype(np.int64)  # 80 % right
    score = single_label_scores(predicted, labels, 2, np.arange(400), resamples=2000)["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert (score.low, score.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_images_of_one_place_are_drawn_together():
    groups = np.array([5, 5, 5, 7, 9, 9])
    rows = resampled_rows(groups, 200, seed=0)
    for row in rows:
        drawn = groups[row[row >= 0]]
        counts = {g: int((drawn == g).sum()) for g in (5, 7, 9)}
        assert counts[5] % 3 == counts[9] % 2 == 0
        assert counts[5] // 3 + counts[7] + counts[9] // 2 == 3
    # Copies of one image say no more than one: the interval stays as wide.
    predicted, labels = predictions(n=50)
    options = {"resamples": 500, "seed": 4}
    one = single_label_scores(predicted, labels, 6, np.arange(50), **options)["accuracy"]
    copies = single_label_scores(
        np.repeat(predicted, 4), np.repeat(labels, 4), 6, np.repeat(np.arange(50), 4), **options
    )["accuracy"]
    assert (copies.low, copies.high) == pytest.approx((one.low, one.high))


def multi(n=150, classes=5, seed=1):
    generator = np.random.default_rng(seed)
    labels = (generator.random((n, classes)) < 0.3).astype(np.int64)
    scores = np.clip(0.5 * labels + 0.6 * generator.random((n, classes)), 0, 1)
    return scores, labels


def test_several_labels_agree_with_scikit_learn():
    scores, labels = multi()
    found = multi_label_scores(scores, labels, np.arange(150), resamples=20)
    binary = scores > 0.5
    expected = {
        "f1_micro": sk.f1_score(labels, binary, average="micro"),
        "f1_macro": sk.f1_score(labels, binary, average="macro"),
        "map_micro": sk.average_precision_score(labels, scores, average="micro"),
        "map_macro": sk.average_precision_score(labels, scores, average="macro"),
    }
    assert {name: s.value for name, s in found.items()} == pytest.approx(expected, abs=1e-6)


def test_an_absent_class_does_no_harm():
    scores, labels = multi()
    labels[:, 2] = 0
    present = [0, 1, 3, 4]
    found = multi_label_scores(scores, labels, np.arange(150), resamples=20)
    expected = sk.average_precision_score(labels[:, present], scores[:, present], average="macro")
    assert found["map_macro"].value == pytest.approx(expected, abs=1e-6)
    f1 = sk.f1_score(labels, scores > 0.5, average="macro", zero_division=0)
    assert found["f1_macro"].value == pytest.approx(f1, abs=1e-6)
    assert np.isnan(average_precisions(scores, labels)[2])
    for score in found.values():
        assert np.isfinite([score.low, score.high]).all()


def test_a_rare_class_may_be_missing_from_a_draw():
    scores, labels = multi(n=12)
    labels[:] = 0
    labels[0, 0] = labels[1, 1] = 1
    found = multi_label_scores(scores, labels, np.arange(12), resamples=200)
    assert all(np.isfinite([s.value, s.low, s.high]).all() for s in found.values())


@pytest.mark.parametrize("ignore", [0, 255])
def test_miou_ignores_nodata_and_agrees_with_both_libraries(ignore):
    generator = np.random.default_rng(5)
    classes = 4
    labels = generator.integers(1 if ignore == 0 else 0, classes, size=(6, 16, 16))
    predicted = np.where(
        generator.random(labels.shape) < 0.7, labels, generator.integers(1, classes, labels.shape)
    )
    nodata = generator.random(labels.shape) < 0.25
    labels[nodata] = ignore
    # What is predicted where there is no data must not matter.
    scores = []
    for fill in (1, 3):
        predicted[nodata] = fill
        each = np.stack([
            confusion(torch.from_numpy(p), torch.from_numpy(m), classes, ignore)
            for p, m in zip(predicted, labels, strict=True)
        ])  # fmt: skip
        scores.append(segmentation_scores(each, np.arange(6), ignore=ignore, resamples=50))
    assert scores[0] == scores[1]
    valid = ~nodata
    counted = [c for c in range(classes) if c != ignore]
    expected = sk.jaccard_score(labels[valid], predicted[valid], labels=counted, average="macro")
    assert scores[0]["miou"].value == pytest.approx(expected, abs=1e-6)
    theirs = MulticlassJaccardIndex(classes, average="macro", ignore_index=ignore)
    theirs.update(torch.from_numpy(predicted), torch.from_numpy(labels))
    assert scores[0]["miou"].value == pytest.approx(float(theirs.compute()), abs=1e-6)
    accuracy = sk.accuracy_score(labels[valid], predicted[valid])
    assert scores[0]["pixel_accuracy"].value == pytest.approx(accuracy)
    assert scores[0]["miou"].low < scores[0]["miou"].value < scores[0]["miou"].high

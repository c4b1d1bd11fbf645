"""The linear probe against its own definition; who learns from whom."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.probes.knn import leave_one_out
from terrafm.eval.probes.linear import WEIGHT_DECAYS, fit, fit_best
from terrafm.eval.probes.protocols import PROTOCOLS, Task, predict


def clusters(n=120, classes=4, d=10, spread=1.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = generator.normal(size=(classes, d))
    features = centres[labels] + spread * generator.normal(size=(n, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), labels.astype(np.int64)


def gradient(probe, features, labels):
    """Of the loss as it is defined, in torch, at the weights that were found."""
    standard = (features - features.mean(0)) / features.std(0)
    classifier = probe.model[-1]
    parts = getattr(classifier, "estimators_", [classifier])
    found = []
    for part, target in zip(parts, labels.T if labels.ndim == 2 else [labels], strict=True):
        weight = torch.tensor(part.coef_, requires_grad=True)
        bias = torch.tensor(part.intercept_, requires_grad=True)
        logits = torch.from_numpy(standard).double() @ weight.T + bias
        truth = torch.from_numpy(target)
        if len(weight) == 1:
            value = functional.binary_cross_entropy_with_logits(logits[:, 0], truth.double())
        else:
            value = functional.cross_entropy(logits, truth)
        value = value + probe.weight_decay / 2 * weight.square().sum()
        found += [g.abs().max().item() for g in torch.autograd.grad(value, [weight, bias])]
    return max(found)


@pytest.mark.parametrize("weight_decay", [1.0, 1e-1, 1e-3])
def test_the_probe_is_at_the_minimum_of_its_loss(weight_decay):
    features, labels = clusters()
    assert gradient(fit(features, labels, weight_decay), features, labels) < 2e-5
    several = np.stack([labels == 0, labels < 2, labels == 3], 1).astype(np.int64)
    assert gradient(fit(features, several, weight_decay), features, several) < 2e-5


def test_what_nobody_or_everybody_has_is_predicted_as_such():
    features, classes = clusters()
    labels = np.stack([classes == 0, classes >= 0, classes == 9], 1).astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = fit(features, labels, 1e-2)
        alone = fit(features, np.full(len(labels), 2), 1e-2)
    assert (probe.probabilities(features)[:, 1:] == [1, 0]).all()
    assert (alone.classes(features) == 2).all()


def test_the_sweep_takes_what_scores_best_on_validation_rows():
    features, labels = clusters(spread=2.5)
    train, valid = np.arange(60), np.arange(60, 120)
    best = fit_best(features, labels, train, valid)
    scores = {
        decay: (fit(features[train], labels[train], decay).classes(features[valid])
                == labels[valid]).mean()
        for decay in WEIGHT_DECAYS
    }  # fmt: skip
    assert scores[best.weight_decay] == max(scores.values())
    expected = features[train].astype(np.float64).mean(0)
    np.testing.assert_allclose(best.model[0].mean_, expected, atol=1e-6)


def task(labels, classes, splits=None, groups=None, seed=0):
    groups = np.arange(len(labels)) if groups is None else groups
    return Task(labels, classes, groups, splits, seed)


def test_without_splits_neighbours_leave_the_image_out():
    features, labels = clusters()
    weighted, plain = leave_one_out(features, labels, 4)
    given = task(labels, 4)
    assert predict("knn20", features, given).predictions.tolist() == weighted.tolist()
    assert predict("knn5", features, given).predictions.tolist() == plain.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_splits_only_training_rows_teach_and_only_test_rows_are_scored(protocol):
    features, labels = clusters()
    splits = np.array(["train"] * 60 + ["valid"] * 30 + ["test"] * 30)
    outcome = predict(protocol, features, task(labels, 4, splits))
    assert outcome.rows.tolist() == list(range(90, 120))
    assert (outcome.predictions == labels[90:]).mean() > 0.6
    # Labels of the test split are never looked at, nor are those of validation by neighbours.
    changed = labels.copy()
    changed[90:] = 0
    if protocol != "linear":
        changed[60:90] = 0
    again = predict(protocol, features, task(changed, 4, splits))
    assert again.predictions.tolist() == outcome.predictions.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_never_teaches_its_own_prediction(protocol):
    # Labels are noise: whoever sees its own label does far better than chance.
    generator = np.random.default_rng(3)
    features = generator.normal(size=(200, 300)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = generator.integers(4, size=200)
    outcome = predict(protocol, features, task(labels, 4))
    assert (outcome.predictions == labels).mean() < 0.4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_one_place_do_not_teach_each_other(protocol):
    # Every place looks like itself alone, and its label is noise.
    generator = np.random.default_rng(4)
    places = np.repeat(np.arange(40), 5)
    features = generator.normal(size=(40, 64))[places] + 0.01 * generator.normal(size=(200, 64))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    labels = generator.integers(4, size=40)[places]
    outcome = predict(protocol, features, task(labels, 4, groups=places))
    assert (outcome.predictions == labels).mean() < 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("split", [False, True])
def test_several_labels_with_an_absent_class(protocol, split):
    features, classes = clusters(spread=0.3)
    labels = np.stack([classes == 0, classes < 2, classes == 9], 1).astype(np.int64)
    splits = np.array((["train"] * 2 + ["valid", "test"]) * 30) if split else None
    # Which split a row is in must not tell its class.
    order = np.random.default_rng(0).permutation(120)
    outcome = predict(protocol, features[order], task(labels[order], 3, splits))
    assert outcome.predictions.shape == (len(outcome.rows), 3)
    assert ((outcome.predictions >= 0) & (outcome.predictions <= 1)).all()
    truth = labels[order][outcome.rows]
    assert ((outcome.predictions > 0.5) == truth).mean() > 0.95


def test_the_seed_fixes_the_folds():
    features, labels = clusters(spread=2.5)
    a, b = (predict("linear", features, task(labels, 4, seed=1)) for _ in range(2))
    assert a.predictions.tolist() == b.predictions.tolist()
    assert a.details == b.details
    assert len(a.details["weight_decay"]) == a.details["folds"] == 5


def test_two_places_cannot_be_cross_validated():
    features, labels = clusters(n=12)
    with pytest.raises(UsageError, match="2 places"):
        predict("linear", features, task(labels, 4, groups=np.arange(12) % 2))


def test_a_missing_split_is_named():
    features, labels = clusters(n=12)
    with pytest.raises(UsageError, match="no images in its valid split"):
        predict("linear", features, task(labels, 4, np.array(["train"] * 6 + ["test"] * 6)))

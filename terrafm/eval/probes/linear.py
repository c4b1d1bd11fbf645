"""A linear classifier on frozen features: scikit-learn's logistic regression over weight decays.

The loss is convex: mean cross-entropy (one label) or binary cross-entropy of each class by itself
(several labels), plus weight_decay / 2 times the squared weights without the bias. So the result
depends on no learning rate, schedule or start.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from terrafm.eval.metrics import average_precisions

# Strongest first: a tie goes to the stronger.
WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# At 1e-4, its default, the loss of 19 labels at the weakest decay ended at 0.104, here at 0.089.
_TOLERANCE = 1e-5
_ITERATIONS = 500


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier.

    Attributes:
        model: standardises features by those it was fitted on, then classifies.
        weight_decay: what it was fitted with.
    """

    model: Pipeline
    weight_decay: float

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) features to (N, C) probabilities of each of several labels alone."""
        return np.asarray(self.model.predict_proba(features.astype(np.float64)), np.float64)

    def classes(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, D) features to (N,) classes."""
        return np.asarray(self.model.predict(features.astype(np.float64)), np.int64)


def fit(
    features: NDArray[np.float32], labels: NDArray[np.int64], weight_decay: float
) -> LinearProbe:
    """Fits one classifier, in float64.

    Features are standardised by their own mean and spread. What is not among the labels, or is
    all that is among them, is predicted with probability 0 or 1.

    Args:
        features: (N, D).
        labels: (N,) classes, or (N, C) 0 or 1.
        weight_decay: strength of the penalty.
    """
    classifier: Any = LogisticRegression(
        C=1 / (len(labels) * weight_decay), tol=_TOLERANCE, max_iter=_ITERATIONS
    )
    if labels.ndim == 2:
        classifier = OneVsRestClassifier(classifier)
    elif len(np.unique(labels)) < 2:
        classifier = DummyClassifier(strategy="most_frequent")
    model = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        # Of a class that all or none have; the table names those that none has.
        warnings.filterwarnings("ignore", r"Label (not )?\d+ is present in all", UserWarning)
        # Features of few directions and the weakest decay: the loss is almost flat where it ends,
        # and validation chooses among the decays by what they predict.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.astype(np.float64), labels)
    return LinearProbe(model, weight_decay)


def fit_best(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
) -> LinearProbe:
    """Fits on the training rows with the weight decay that scores best on the validation rows.

    Best is accuracy for one label, macro average precision for several.

    Args:
        features: (N, D).
        labels: (N,) classes, or (N, C) 0 or 1.
        train: rows to fit on.
        valid: rows to choose by.
    """
    probes = [fit(features[train], labels[train], decay) for decay in WEIGHT_DECAYS]
    # Of equal ones `max` takes the first.
    return max(probes, key=lambda probe: _score(probe, features[valid], labels[valid]))


def _score(probe: LinearProbe, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    if labels.ndim == 1:
        return float(accuracy_score(labels, probe.classes(features)))
    return mean_precision(probe.probabilities(features), labels)


def mean_precision(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Macro average precision to choose by; 0 where no image has any label: all tie.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C) 0 or 1.
    """
    precisions = average_precisions(scores, labels)
    return float(np.nanmean(precisions)) if np.isfinite(precisions).any() else 0.0

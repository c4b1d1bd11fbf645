"""What a run is validated by: the EMA teacher's features on images, without training.

`validation.scores` says by which kinds of scores:

knn: on labelled images, for each modality alone and all fused, kNN with k 20 and 5 as `terrafm
evaluate knn` computes it, each class by itself and the rarest together, effective rank,
uniformity, and between modalities alignment. By default the images are tiles of the run's own
dataset with their land cover: the encoder has seen their pixels, but no label. A set with splits
is scored on its validation split with its training split as neighbours; the test split stays
unseen.

retrieval: without labels, whether a tile is found again by another sensor or at another date, as
`terrafm evaluate retrieval` computes it, among tiles of a dataset of ingest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.eval.datasets.compatibility import modality_choices, normalisation_for
from terrafm.eval.datasets.labelled import LabelledSet
from terrafm.eval.datasets.registry import absolute_uri, open_labelled, open_set
from terrafm.eval.datasets.sample import Sample, draw_sample
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import encoder_features
from terrafm.eval.features.readouts import Readout
from terrafm.eval.geometry import alignment, uniformity
from terrafm.eval.probes.knn import TEMPERATURE, nearest_in, vote
from terrafm.eval.retrieval.checkpoints import RetrievalSample, measure_retrieval
from terrafm.models.encoder import Encoder
from terrafm.models.weights import encoder_from_state
from terrafm.train.checkpoints.store import contract_of, load_encoder_state, read_record
from terrafm.train.checkpoints.validations import ValidationTask
from terrafm.train.metrics.trackers import TrackedPicture
from terrafm.train.step.collapse import effective_rank

_FUSED = "fused"
_BATCH = 32
_VOTES: tuple[tuple[str, int, float | None], ...] = (("knn20", 20, TEMPERATURE), ("knn5", 5, None))
_SHARES = ("accuracy", "balanced_accuracy", "tail_accuracy")

Draw = Callable[[ValidationTask, str, torch.device], Sequence[TrackedPicture]]
"""Pictures of a run's checkpoint, given by its URI, computed on a device."""


class CheckpointValidation:
    """The validation of a run; give the class to `pretrain` as `validate`.

    Args:
        task: the run.
        draw: what makes pictures of a checkpoint for the run's trackers; by default none are made.
    """

    def __init__(self, task: ValidationTask, draw: Draw | None = None) -> None:
        self.task = task
        self._draw = draw
        own, wanted = task.data.rstrip("/"), task.config.validation.data
        # It is read in another process, perhaps on another machine.
        uri = own if wanted is None else absolute_uri(wanted).rstrip("/")
        self._labelled = None if uri == own else uri

    def check(self) -> tuple[str, ...]:
        """Names of the metrics that every score will have; reads no pixel.

        Raises:
            UsageError: for knn the labelled set does not exist, has fewer than two classes,
                several labels an image, masks, or no modality of the run; for retrieval
                `validation.data` is no dataset of ingest, or no tile has a partner.
        """
        names: list[str] = []
        if self._asks_for("knn"):
            names += _names(self._choices(self._open()))
        if self._asks_for("retrieval"):
            names += self._draw_retrieval().metric_names()
        return tuple(names)

    def score(self, checkpoint: str) -> dict[str, Any]:
        """Scores the teacher of a checkpoint.

        Args:
            checkpoint: URI of its folder.

        Returns:
            JSON-able: metrics by name (a number, or None where features are not finite), samples
            and data. With knn, whose images these two are of where both kinds are asked for:
            per_class (choice of modalities -> class -> n, knn20, knn5) and tail (names of the
            rarest classes). With retrieval: retrieval (samples, data, and tasks: name -> n,
            candidates).

        Raises:
            UsageError, DamagedCheckpointError: the checkpoint is gone, or not what was written.
            TerraFMError: an image cannot be read.
        """
        encoder = load_teacher(checkpoint)
        found: dict[str, Any] = {"metrics": {}}
        if self._asks_for("knn"):
            found |= self._score_labelled(encoder)
        if self._asks_for("retrieval"):
            metrics, told = self._score_retrieval(encoder)
            found["metrics"] |= metrics
            # What every line has, whatever was scored.
            found = {"samples": told["samples"], "data": told["data"], **found, "retrieval": told}
        return found

    def pictures(self, checkpoint: str) -> Sequence[TrackedPicture]:
        """Pictures of what the teacher of a checkpoint sees, for the run's trackers.

        Args:
            checkpoint: URI of its folder.

        Raises:
            UsageError, TerraFMError: the checkpoint is gone or damaged, or a tile is.
        """
        return () if self._draw is None else self._draw(self.task, checkpoint, self._device())

    def _asks_for(self, kind: str) -> bool:
        return kind in self.task.config.validation.scores

    def _score_labelled(self, encoder: Encoder) -> dict[str, Any]:
        sample = draw_sample(self._open(), self.task.config.validation.samples)
        choices = modality_choices(encoder, sample.images, None, [])
        used = [name for choice in choices for name in choice]
        normalisation, _ = normalisation_for(encoder, sample.images, list(dict.fromkeys(used)), [])
        found = encoder_features(
            [encoder],
            sample.images,
            choices,
            normalisation,
            size=self._size(),
            batch=_BATCH,
            device=self._device(),
        )
        features = {
            _title(choice): Readout.CLS.finished(rows)
            for choice, (rows,) in zip(choices, found, strict=True)
        }
        return measure(features, sample) | {
            "samples": len(sample.images.names),
            "data": sample.images.uri,
        }

    def _score_retrieval(self, encoder: Encoder) -> tuple[dict[str, float | None], dict[str, Any]]:
        """Metrics, and what they are of."""
        sample = self._draw_retrieval()
        normalisation, _ = normalisation_for(encoder, sample.images, sample.modalities, [])
        metrics = measure_retrieval(
            encoder,
            sample,
            normalisation,
            size=self._size(),
            batch=_BATCH,
            device=self._device(),
        )
        told = {
            "samples": len(sample.rows),
            "data": sample.images.uri,
            "tasks": sample.counts(),
        }
        return _rounded(metrics), told

    def _open(self) -> LabelledSet:
        images: LabelledSet
        if self._labelled is None:
            images = self._own_tiles()
            if len(images.classes) < 2:
                raise UsageError(
                    f"dataset {images.uri} has one land-cover class: give another labelled set "
                    "as validation.data, score without labels by validation.scores=[retrieval], "
                    "or set validation.every_steps=0"
                )
        else:
            images = open_labelled(self._labelled)
        if images.labels.ndim > 1:
            raise UsageError(
                f"validation.data={images.uri} has several labels per image: validation takes "
                "one; terrafm evaluate compare scores such sets"
            )
        return images

    def _own_tiles(self) -> ShardTiles:
        # The version that the run trains on: a set that grows would move the scores.
        return ShardTiles(self.task.data, self.task.fingerprint)

    def _draw_retrieval(self) -> RetrievalSample:
        tiles = self._tiles()
        sensors = [choice[0] for choice in self._choices(tiles) if len(choice) == 1]
        most = self.task.config.validation.samples
        try:
            return RetrievalSample.draw(tiles, sensors, most)
        except UsageError as error:
            raise UsageError(
                f"validation.scores asks for retrieval among at most {most} tiles "
                f"(validation.samples), but {error}"
            ) from None

    def _tiles(self) -> ShardTiles:
        """The set given as validation.data where it is a dataset of ingest, else the run's own."""
        if self._labelled is None:
            return self._own_tiles()
        given = open_set(self._labelled)
        if isinstance(given, ShardTiles):
            return given
        if not self._asks_for("knn"):
            raise UsageError(
                f"validation.data={self._labelled} is no dataset of terrafm ingest: retrieval "
                "takes one; leave it out to score tiles of the run's own"
            )
        return self._own_tiles()

    def _choices(self, images: LabelledSet) -> list[tuple[str, ...]]:
        trained = self.task.config.data.modalities
        both = tuple(name for name in images.modalities if name in trained)
        if not both:
            raise UsageError(
                f"validation.data={images.uri} has {', '.join(images.modalities)}, the run "
                f"trains on {', '.join(trained)}: nothing to validate"
            )
        return [*((name,) for name in both), *([both] if len(both) > 1 else [])]

    def _size(self) -> int:
        return self.task.config.data.global_size

    def _device(self) -> torch.device:
        # Without a GPU of its own it would see, and disturb, those of the ranks.
        own = self.task.config.validation.gpus > 0 and torch.cuda.is_available()
        return torch.device("cuda" if own else "cpu")


def load_teacher(checkpoint: str) -> Encoder:
    """The encoder of a checkpoint's teacher, in eval mode, with its contract.

    Raises:
        UsageError, DamagedCheckpointError: it is gone, or not what was written.
    """
    record = read_record(checkpoint)
    encoder = encoder_from_state(load_encoder_state(checkpoint, "teacher"), checkpoint)
    encoder.contract = contract_of(record, checkpoint)
    return encoder


def measure(features: Mapping[str, NDArray[np.float32]], sample: Sample) -> dict[str, Any]:
    """The metrics of a sample's features.

    Args:
        features: choice of modalities -> (N, D) rows of unit length, of zeros for an image that
            has none of them.
        sample: the images.

    Returns:
        metrics, per_class and tail, as `CheckpointValidation.score` has them.
    """
    classes = sample.images.classes
    metrics: dict[str, float | None] = {}
    per_class: dict[str, dict[str, dict[str, float]]] = {}
    for title, rows in features.items():
        there = np.abs(rows).sum(1) > 0
        by_class: dict[int, dict[str, float]] = {}
        for name, (labels, right) in _neighbours(rows, there, sample).items():
            for c in np.unique(labels).tolist():
                row = by_class.setdefault(c, {"n": int((labels == c).sum())})
                row[name] = round(float(right[labels == c].mean()), 6)
            tail = [by_class[c][name] for c in sample.tail if c in by_class]
            parts = (right.tolist(), [row[name] for row in by_class.values()], tail)
            for share, part in zip(_SHARES, parts, strict=True):
                metrics[f"{name}/{title}/{share}"] = fmean(part) if part else None
        per_class[title] = {classes[c]: row for c, row in by_class.items()}
        metrics[f"effective_rank/{title}"] = effective_rank(torch.from_numpy(rows[there]))
        metrics[f"uniformity/{title}"] = uniformity(rows[there])
    for one, other in combinations([title for title in features if title != _FUSED], 2):
        both = (np.abs(features[one]).sum(1) > 0) & (np.abs(features[other]).sum(1) > 0)
        metrics[f"alignment/{one}-{other}"] = alignment(features[one][both], features[other][both])
    return {
        "metrics": _rounded(metrics),
        "per_class": per_class,
        "tail": [classes[c] for c in sample.tail],
    }


def _neighbours(
    features: NDArray[np.float32], there: NDArray[np.bool_], sample: Sample
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """For each kNN: labels of the images it was asked about, and whether it was right."""
    labels, groups = sample.images.labels, sample.images.groups
    scored, bank = sample.scored[there[sample.scored]], sample.bank[there[sample.bank]]
    if not len(bank):
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.bool_))
        return {name: nothing for name, _, _ in _VOTES}
    apart = sample.images.splits is None
    neighbours, similarities = nearest_in(
        features[scored],
        features[bank],
        max(k for _, k, _ in _VOTES),
        groups[scored] if apart else None,
        groups[bank] if apart else None,
    )
    right = {}
    for name, k, temperature in _VOTES:
        classes = len(sample.images.classes)
        nearest = (neighbours[:, :k], similarities[:, :k])
        found = vote(*nearest, labels[bank], classes, temperature)
        right[name] = (labels[scored], found == labels[scored])
    return right


def _rounded(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in metrics.items()}


def _title(choice: Sequence[str]) -> str:
    return choice[0] if len(choice) == 1 else _FUSED


def _names(choices: Sequence[tuple[str, ...]]) -> Iterator[str]:
    titles = [_title(choice) for choice in choices]
    for title in titles:
        yield from (f"{name}/{title}/{share}" for name, _, _ in _VOTES for share in _SHARES)
        yield f"effective_rank/{title}"
        yield f"uniformity/{title}"
    alone = [title for title in titles if title != _FUSED]
    yield from (f"alignment/{one}-{other}" for one, other in combinations(alone, 2))

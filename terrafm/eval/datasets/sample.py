"""A bounded part of a labelled set, always the same, in which rare classes are not lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Image, LabelledSet

# Of the classes, the rarest ones.
_TAIL_SHARE = 1 / 3
_SEED = 0


@dataclass(frozen=True)
class Sample:
    """The images that every checkpoint of a run is scored on.

    Attributes:
        images: the labelled set, reduced to them.
        scored: (Q,) rows that are classified.
        bank: (N,) rows that vote.
        tail: numbers of the rarest classes of the whole set, ascending.
    """

    images: LabelledSet
    scored: NDArray[np.int64]
    bank: NDArray[np.int64]
    tail: tuple[int, ...]


def draw_sample(images: LabelledSet, most: int) -> Sample:
    """Draws images, of each class as many as of every other, as far as there are so many.

    A set with splits gives images of its validation split to classify and of its training split
    to vote; of any other set all images do both.

    Args:
        images: the whole set, one label an image.
        most: images drawn, of each split that is used.

    Raises:
        UsageError: the set has splits, and one of the two is empty.
    """
    frequency = np.bincount(images.labels, minlength=len(images.classes))
    present = [c for c in np.argsort(frequency, kind="stable").tolist() if frequency[c]]
    tail = tuple(sorted(present[: max(1, round(len(present) * _TAIL_SHARE))]))
    if images.splits is None:
        rows = _equal_rows(images.labels, np.arange(len(images.labels)), most)
        everyone = np.arange(len(rows))
        return Sample(_Part(images, rows), everyone, everyone, tail)
    parts = []
    for split in ("valid", "train"):
        found = np.flatnonzero(images.splits == split)
        if not len(found):
            raise UsageError(
                f"{images.uri} has splits and no images in {split}: validation takes neighbours "
                "from train for the images of valid"
            )
        parts.append(_equal_rows(images.labels, found, most))
    part = _Part(images, np.concatenate(parts))
    scored = np.arange(len(parts[0]))
    return Sample(part, scored, len(scored) + np.arange(len(parts[1])), tail)


def _equal_rows(labels: NDArray[np.int64], rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of some rows, ascending: in rounds, each of which takes one of every class."""
    shuffled = rows[np.random.default_rng(_SEED).permutation(len(rows))]
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels[by_class], return_counts=True)[1]
    first = np.repeat(np.cumsum(counts) - counts, counts)
    rounds = np.arange(len(by_class)) - first
    return np.sort(by_class[np.argsort(rounds, kind="stable")[:most]])


class _Part:
    """Some images of a labelled set."""

    def __init__(self, images: LabelledSet, rows: NDArray[np.int64]) -> None:
        self._images = images
        self._rows = rows
        self.uri = images.uri
        self.names: Sequence[str] = [images.names[row] for row in rows.tolist()]
        self.classes = images.classes
        self.labels = images.labels[rows]
        self.groups = images.groups[rows]
        if len(np.unique(self.groups)) < 2:
            # Of a single place: were it left out as a whole, nobody could vote.
            self.groups = np.arange(len(rows), dtype=np.int64)
        self.splits: NDArray[np.str_] | None = (
            None if images.splits is None else images.splits[rows]
        )
        self.modalities = images.modalities
        self.bands = images.bands

    @property
    def fingerprint(self) -> str:
        """Of the whole set."""
        return self._images.fingerprint

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image."""
        return self._images.read(int(self._rows[row]), modalities)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Of the whole set."""
        return self._images.statistics()

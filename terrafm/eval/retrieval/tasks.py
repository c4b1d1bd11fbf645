"""What is looked for: the same tile by another sensor, the same place at another date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

LATER = "later"
_SEED = 0


@dataclass(frozen=True)
class Task:
    """Queries of one sensor and their partners of another, or of another date.

    Attributes:
        name: "s1>s2_l2a", or "s2_l2a>later" for the last date of the first one's place.
        query: modality of the queries.
        gallery: modality of the gallery.
        query_rows: (Q,) rows of the set.
        gallery_rows: (N,) rows of the set.
        partners: (Q,) each query's partner, its position in the gallery.
    """

    name: str
    query: str
    gallery: str
    query_rows: NDArray[np.int64]
    gallery_rows: NDArray[np.int64]
    partners: NDArray[np.int64]


def draw_places(places: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows of whole places, ascending: always the same, about `most` of them.

    Args:
        places: (N,) number of each tile's place.
        most: tiles; the last place drawn may exceed it.
    """
    if len(places) <= most:
        return np.arange(len(places))
    numbers, counts = np.unique(places, return_counts=True)
    order = np.random.default_rng(_SEED).permutation(len(numbers))
    drawn = int(np.searchsorted(np.cumsum(counts[order]), most)) + 1
    return np.flatnonzero(np.isin(places, numbers[order[:drawn]]))


def make_tasks(
    available: Mapping[str, NDArray[np.bool_]],
    places: NDArray[np.int64],
    times: Mapping[str, Sequence[str]],
) -> list[Task]:
    """All tasks that some tiles allow.

    Every ordered pair of sensors that tiles have both; and for every sensor the places that it
    has seen at several dates, of which the first asks for the last. A task without a single
    wrong candidate is none.

    Args:
        available: modality -> (N,) whether a tile has it.
        places: (N,) number of each tile's place.
        times: modality -> (N,) acquisition times, as text that sorts; equal ones keep the order
            of the rows. Empty where no place has several tiles.
    """
    tasks = []
    for query, gallery in permutations(available, 2):
        rows = np.flatnonzero(available[query] & available[gallery])
        there = np.flatnonzero(available[gallery])
        partners = np.searchsorted(there, rows)
        tasks.append(Task(f"{query}>{gallery}", query, gallery, rows, there, partners))
    for name in times:
        has = available[name]
        rows = np.flatnonzero(has)
        order = np.lexsort((rows, np.asarray(times[name], dtype=str)[rows], places[rows]))
        ordered = rows[order]
        starts = np.flatnonzero(np.diff(places[ordered], prepend=-1))
        ends = np.append(starts[1:], len(ordered)) - 1
        several = ends > starts
        first, last = ordered[starts[several]], ordered[ends[several]]
        task = Task(f"{name}>{LATER}", name, name, first, last, np.arange(len(first)))
        tasks.append(task)
    return [task for task in tasks if _has_choice(task, places)]


def _has_choice(task: Task, places: NDArray[np.int64]) -> bool:
    asked, offered = np.unique(places[task.query_rows]), np.unique(places[task.gallery_rows])
    return len(asked) > 0 and len(np.union1d(asked, offered)) > 1

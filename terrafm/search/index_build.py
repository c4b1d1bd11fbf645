"""Builds the index of `terrafm.search.index`, in the memory of a few files of embeddings.

All vectors are read once: each gets its list and its bytes, which go to the disk as they come, and
some hundred of them are compared with all, so that the index can say how much it finds. Then the
bytes are put in the order of the lists.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from terrafm.errors import TerraFMError, UsageError
from terrafm.search.embeddings import Embeddings
from terrafm.search.index import (
    ARRAYS,
    ID_BYTES,
    IDS,
    LISTS,
    MOST_LISTS,
    RECORD,
    SEARCH,
    IndexRecord,
    check_possible,
    fingerprint,
    hashes_of,
    ivf,
    need_faiss,
    on_disk,
    unit,
)
from terrafm.search.recall import Truth
from terrafm.search.spread import Spread
from terrafm.storage import join, list_names, remove_files, to_json, write_bytes
from terrafm.storage.durable import replace
from terrafm.storage.lease import lease

WANTED_RECALL = 0.97
_SAMPLED_PER_LIST = 64
_SAMPLED_FILES = 16
_ROUNDS = 8
_QUERIES = 256
# More than this takes longer than a person waits for.
_MOST_LOOKED_AT = 1_000_000
# Room for values beyond those of the sample.
_MARGIN = 0.1
_GATHERED_BYTES = 256 << 20
_OURS = re.compile(r"[0-9a-f]{12}-(arrays\.safetensors|lists\.bin|ids\.bin|codes)(\.half)?")

Progress = Callable[[int, int], None]


def build_index(folder: Embeddings, progress: Progress | None = None) -> IndexRecord:
    """Builds the index of a folder, in place of an older one.

    Args:
        folder: embeddings on a disk.
        progress: called with (rows done, rows in all).

    Raises:
        UsageError: FAISS is not installed, the folder lies in a store, there is no room, or
            another process builds it.
        TerraFMError: a file of embeddings cannot be read, or no row has a direction.
    """
    check_possible(folder.uri)
    faiss = need_faiss()
    place = Path(folder.uri) / SEARCH
    place.mkdir(exist_ok=True)
    _check_room(folder, place)
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    with lease(str(place), "terrafm search --index"):
        record = _Builder(folder, place).build(progress)
        write_bytes(join(str(place), RECORD), (to_json(record.model_dump(), indent=1)).encode())
        old = [
            name
            for name in list_names(str(place))
            if _OURS.fullmatch(name) and not name.startswith(record.key)
        ]
        remove_files(str(place), old)
    return record


class _Builder:
    """The steps, and what they hand to each other."""

    def __init__(self, folder: Embeddings, place: Path) -> None:
        self.folder, self.place = folder, place
        self.fingerprint = fingerprint(folder.manifest)
        self.key = self.fingerprint[:12]
        self.rows, self.dim = len(folder), folder.manifest.dim
        self.lists = min(MOST_LISTS, 1 << int(np.log2(max(1.0, self.rows**0.5))))
        self.spread: Spread | None = None
        self.indexed = 0
        # Of the sample: their places, and themselves as the folder has them.
        self.query_rows: list[int] = []
        self.queries: list[NDArray[np.float32]] = []

    def build(self, progress: Progress | None) -> IndexRecord:
        start = time.monotonic()
        arrays = self._trained()
        with ExitStack() as stack:
            codes, assigned, truth = self._encoded(arrays, stack, progress)
            order = np.argsort(assigned, kind="stable")
            order = order[np.searchsorted(assigned[order], 0) :]
            sizes = np.bincount(assigned[order], minlength=self.lists).astype(np.int64)
            arrays["sizes"] = sizes
            self._write_lists(codes, order, sizes)
        if self.spread is not None:
            arrays |= self.spread.moments()
        write_bytes(self._name(ARRAYS), safetensors.numpy.save(arrays))
        return self._measured(arrays, truth, start)

    def _name(self, name: str) -> str:
        return str(self.place / f"{self.key}-{name}")

    def _prepared(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit(vectors if self.spread is None else self.spread.standardise(vectors))

    def _trained(self) -> dict[str, NDArray[Any]]:
        """Centroids and the range of what is left after them, from a sample of the rows."""
        faiss = need_faiss()
        sample = self._prepared(self._sampled())
        sample = sample[np.isfinite(sample).all(1)]
        if not len(sample):
            raise TerraFMError(
                f"no embedding of {self.folder.uri} that was looked at has a direction: all are "
                "zero or not finite"
            )
        self.lists = min(self.lists, len(sample))
        kmeans = faiss.Kmeans(
            self.dim, self.lists, niter=_ROUNDS, spherical=True, seed=1,
            min_points_per_centroid=1, max_points_per_centroid=_SAMPLED_PER_LIST,
        )  # fmt: skip
        kmeans.train(sample)
        centroids = np.ascontiguousarray(kmeans.centroids, np.float32)
        left = sample - centroids[_nearest(centroids, sample)]
        low, high = left.min(0), left.max(0)
        margin = np.maximum((high - low) * _MARGIN, np.finfo(np.float32).eps)
        low, step = low - margin, high - low + 2 * margin
        return {"centroids": centroids, "low": low, "step": step.astype(np.float32)}

    def _sampled(self) -> NDArray[np.float32]:
        """Vectors of files that are spread evenly; of all where they are standardised."""
        wanted = self.lists * _SAMPLED_PER_LIST
        parts = [n for n, part in enumerate(self.folder.manifest.parts) if part.rows]
        if self.folder.manifest.needs_standardising:
            self.spread = Spread(self.dim)
        else:
            chosen = np.linspace(0, len(parts) - 1, min(len(parts), _SAMPLED_FILES))
            parts = [parts[n] for n in np.unique(chosen.round().astype(int)).tolist()]
        found = []
        for number in parts:
            vectors = self.folder.vectors_of_part(number)
            if self.spread is not None:
                self.spread.add(vectors)
            found.append(vectors[_spread_evenly(len(vectors), -(-wanted // len(parts)))])
            rows = _spread_evenly(len(vectors), -(-_QUERIES // len(parts)))
            self.query_rows += (self.folder.first_row(number) + rows).tolist()
            self.queries.append(vectors[rows])
        return np.concatenate(found)

    def _encoded(
        self, arrays: dict[str, NDArray[Any]], stack: ExitStack, progress: Progress | None
    ) -> tuple[BinaryIO, NDArray[np.int32], Truth]:
        """Bytes of all rows in a file, the list of each (-1: none), and what queries would find."""
        index, centroids = ivf(arrays, 0), arrays["centroids"]
        codes = stack.enter_context((self.place / f"{self.key}-codes").open("w+b"))
        stack.callback(Path(codes.name).unlink)
        assigned = np.full(self.rows, -1, np.int32)
        hashes = np.zeros(self.rows, np.uint64)
        queries = self._prepared(np.concatenate(self.queries))
        directed = np.isfinite(queries).all(1)
        truth = Truth(queries[directed], np.array(self.query_rows, np.int64)[directed])
        first = 0
        for ids, vectors in self.folder.vectors():
            stop = first + len(vectors)
            hashes[first:stop] = hashes_of(ids.to_pylist())
            made = self._prepared(vectors)
            known = np.asarray(np.isfinite(made).all(axis=1))
            made[~known] = 0
            near = _nearest(centroids, made)
            assigned[first:stop] = np.where(known, near, -1)
            codes.write(index.sq.compute_codes(made - centroids[near]).tobytes())
            truth.add(first, made, known)
            self.indexed += int(known.sum())
            first = stop
            if progress is not None:
                progress(first, self.rows)
        codes.flush()
        order = np.argsort(hashes, kind="stable")
        self._write(IDS, [hashes[order], order.astype(np.int64)])
        return codes, assigned, truth

    def _write_lists(
        self, codes: BinaryIO, order: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> None:
        """List after list its vectors' bytes, then their places in the folder."""
        stored = np.memmap(codes, np.uint8, "r", shape=(self.rows, self.dim))
        stops = np.cumsum(sizes)
        at_once = max(1, _GATHERED_BYTES // self.dim)

        def blocks() -> Iterator[NDArray[Any]]:
            first = 0
            while first < self.lists:
                done = stops[first] - sizes[first]
                last = max(first + 1, int(np.searchsorted(stops, done + at_once, "right")))
                gathered = stored[order[done : stops[last - 1]]]
                for number in range(first, last):
                    here = slice(stops[number] - sizes[number] - done, stops[number] - done)
                    yield gathered[here]
                    yield order[stops[number] - sizes[number] : stops[number]].astype(np.int64)
                first = last

        self._write(LISTS, blocks())

    def _write(self, name: str, blocks: Any) -> None:
        """Writes arrays one after the other, whole or invisible."""
        target = Path(self._name(name))
        half = target.with_name(f"{target.name}.half")
        with half.open("wb") as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
        replace(half, target)

    def _measured(self, arrays: dict[str, NDArray[Any]], truth: Truth, start: float) -> IndexRecord:
        """The index with as few lists to look at as find enough."""
        faiss = need_faiss()
        index = ivf(arrays, self.indexed)
        kept = on_disk(index, self._name(LISTS), arrays["sizes"])
        faiss.omp_set_num_threads(1)
        probes, shares, times = 1, np.ones(1), [0.0]
        while True:
            index.nprobe = probes
            shares, times = truth.compared(index)
            looked_at = 2 * probes * self.indexed / self.lists
            enough = shares.mean() >= WANTED_RECALL or looked_at > _MOST_LOOKED_AT
            if enough or probes >= self.lists:
                break
            probes = min(2 * probes, self.lists)
        del kept
        return IndexRecord(
            embeddings=self.fingerprint,
            rows=self.rows,
            indexed=self.indexed,
            dim=self.dim,
            lists=self.lists,
            probes=probes,
            recall=float(shares.mean()),
            recall_deviation=float(shares.std()),
            queries=len(shares),
            milliseconds=float(np.median(times)) * 1000,
            seconds=time.monotonic() - start,
            key=self.key,
            faiss=faiss.__version__,
        )


def _spread_evenly(rows: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(np.int64))


def _nearest(centroids: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the centroid of each vector."""
    found = need_faiss().knn(vectors, centroids, 1, metric=need_faiss().METRIC_INNER_PRODUCT)[1]
    return np.asarray(found[:, 0], np.int64)


def _check_room(folder: Embeddings, place: Path) -> None:
    """Bytes of all rows lie there twice for a time."""
    needed = len(folder) * (2 * folder.manifest.dim + 3 * ID_BYTES)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"an index of {len(folder):,} embeddings takes {needed / 1e9:.1f} GB of the disk while "
            f"it is built, and {place} has {free / 1e9:.1f}: make room, or take --exact"
        )

"""Builds the index of a folder of embeddings, or searches in it, in a process of its own."""

import json
import resource
import sys
import time
from typing import Any

import numpy as np

from terrafm.search.embeddings import Embeddings
from terrafm.search.index import Index, find_index
from terrafm.search.index_build import build_index
from terrafm.search.recall import MORE, NEAREST
from terrafm.search.similar import find_similar


def main(request: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, and the peak of this process's memory in GB."""
    found = {"build": build, "search": search, "command": command}[request["what"]](request)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **found,
        "gigabytes": used.ru_maxrss * 1024 / 1e9,
        "private": _private() / 1e9,
        "processor_seconds": used.ru_utime + used.ru_stime,
    }


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Builds; the record says how long it took and what it finds."""
    start = time.perf_counter()
    record = build_index(Embeddings(request["folder"]))
    return {"seconds": time.perf_counter() - start, **record.model_dump()}


def search(request: dict[str, Any]) -> dict[str, Any]:
    """Searches for rows that nobody chose the index by, and compares with all by the exact search.

    Milliseconds are those of one search in the open index.
    """
    folder = Embeddings(request["folder"])
    record = find_index(folder.uri, folder.manifest)
    assert record is not None
    index = Index(folder.uri, record)
    rng = np.random.default_rng(7)
    # Few files, so that fetching the queries takes no longer than searching for them.
    numbers = rng.choice(len(folder.manifest.parts), min(8, len(folder.manifest.parts)), False)
    queries, places = [], []
    for number in numbers.tolist():
        vectors = folder.vectors_of_part(number)
        rows = rng.choice(
            len(vectors), min(request["queries"] // len(numbers), len(vectors)), False
        )
        queries.append(vectors[rows])
        places += (rows + folder.first_row(number)).tolist()
    times, answers = [], []
    for query in np.concatenate(queries):
        start = time.perf_counter()
        found = index.search(query, NEAREST + MORE + 1)
        times.append(1000 * (time.perf_counter() - start))
        answers.append(found.rows)
    memory = _private() / 1e9
    compared = np.concatenate(queries)[: request["compared"]]
    shares = []
    for real, answer, own in zip(exact(folder, compared), answers, places, strict=False):
        others = [row for row in real if row != own][:NEAREST]
        # As `terrafm search` does: a few more, which are then compared exactly.
        found = [row for row in answer if row != own][: NEAREST + MORE]
        shares.append(len(set(others) & set(found)) / len(others))
    return {
        "p50": float(np.median(times)), "p99": float(np.quantile(times, 0.99)), "first": times[0],
        "recall": float(np.mean(shares)), "queries": len(times), "compared": len(shares),
        "private_while_searching": memory,
    }  # fmt: skip


def exact(folder: Embeddings, queries: np.ndarray) -> list[list[int]]:
    """Places of the nearest of all rows, themselves among them, by products in float32."""
    best = [(np.zeros(0), np.zeros(0, np.int64)) for _ in queries]
    first = 0
    for _, vectors in folder.vectors():
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for number, found in enumerate(queries @ units.T):
            rows = np.argpartition(-found, NEAREST)[: NEAREST + 1]
            kept, places = best[number]
            values = np.concatenate([kept, found[rows]])
            places = np.concatenate([places, rows + first])
            order = np.argsort(-values)[: NEAREST + 1]
            best[number] = values[order], places[order]
        first += len(vectors)
    return [places.tolist() for _, places in best]


def command(request: dict[str, Any]) -> dict[str, Any]:
    """All that `terrafm search` does: the tile's vector, its neighbours, what is known of them."""
    start = time.perf_counter()
    find_similar(request["folder"], request["tile"], count=NEAREST, index=request["index"])
    return {"seconds": time.perf_counter() - start}


def _private() -> int:
    """Bytes of this process that are no mapped file."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

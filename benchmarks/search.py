"""Searching in millions of embeddings by an index, against looking at all of them.

    python benchmarks/search.py [--rows 10000000] [--dim 384] [--json]

Vectors are made up: a mixture of 20,000 clusters on a bent surface of 32 dimensions
(`harness/vectors.py`), written as `terrafm embed` writes them, float32. The index is built once in
a process of its own; its seconds have all that building takes, reading the Parquet files included.
Then 400 rows that nobody chose the index by are searched for, one after the other, on one core:
the median of a search in the open index, and the share of the 10 nearest, by exact search, that it
finds, with the four more that are then compared exactly, as `terrafm search` does. Memory is that
of a process beside the index's file, which is mapped: its pages are the kernel's to keep or drop.
The exact search's time is beside.
"""

import shutil
import statistics
from typing import Any

from common import Figure, note, parse, parser, report, run_child
from harness.vectors import make_folder

from terrafm.storage import exists


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--rows", type=int, default=10_000_000, help="embeddings (%(default)s)")
    options.add_argument("--dim", type=int, default=384, help="numbers of each (%(default)s)")
    options.add_argument("--queries", type=int, default=400, help="searches (%(default)s)")
    options.add_argument("--compared", type=int, default=100, help="with all rows (%(default)s)")
    arguments = parse(options)
    if arguments.quick:
        arguments.rows, arguments.dim, arguments.queries, arguments.compared = 20_000, 32, 40, 40
    folder = arguments.work / f"embeddings-{arguments.rows}-{arguments.dim}"
    if not exists(str(folder / "embedding.json")):
        for done in make_folder(folder, arguments.rows, arguments.dim):
            note(f"{done:,} of {arguments.rows:,} embeddings are made")
    built = []
    for _ in range(arguments.rounds):
        shutil.rmtree(folder / "search", ignore_errors=True)
        built.append(child("build", folder=str(folder)))
        note(f"built in {built[-1]['seconds']:.0f} s, {built[-1]['gigabytes']:.2f} GB")
    found = child(
        "search", folder=str(folder), queries=arguments.queries, compared=arguments.compared
    )
    tile = f"tile_{arguments.rows // 2:08d}"
    whole, every = (
        child("command", folder=str(folder), tile=tile, index=index) for index in (True, False)
    )
    size = sum(path.stat().st_size for path in (folder / "search").iterdir()) / 1e9
    what = f"{arguments.rows:,} x {arguments.dim}"
    seconds = statistics.median(one["seconds"] for one in built)
    built_in = max(one["private"] for one in built)
    figures = [
        Figure(f"index of {what}, built", seconds / 60, 15, "lower", "min"),
        Figure(f"index of {what}, built: processor time, both cores together",
               statistics.median(one["processor_seconds"] for one in built) / 60, None, "lower",
               "min"),
        Figure(f"index of {what}, a search, p50", found["p50"], 50, "lower", "ms"),
        Figure(f"index of {what}, recall@10", found["recall"], 0.95, "higher", ""),
        Figure(f"index of {what}, a search, p99", found["p99"], None, "lower", "ms"),
        Figure(f"index of {what}, recall@10 by its own record", built[-1]["recall"], None,
               "higher", ""),
        Figure(f"index of {what}, memory at most while built",
               max(one["gigabytes"] for one in built), None, "lower", "GB"),
        Figure(f"index of {what}, of it left at the end", built_in, None, "lower", "GB"),
        Figure(f"index of {what}, memory while searching", found["private_while_searching"], None,
               "lower", "GB"),
        Figure(f"index of {what}, on the disk", size, None, "lower", "GB"),
        Figure(f"index of {what}, all that terrafm search does", whole["seconds"], None, "lower",
               "s"),
        Figure(f"exact search of {what}, all that terrafm search does", every["seconds"], None,
               "lower", "s"),
    ]  # fmt: skip
    report(figures, arguments, "synthetic vectors")


def child(what: str, **request: Any) -> dict[str, Any]:
    """A process of its own."""
    return run_child("search_once.py", {"what": what, **request}, timeout=7200)


if __name__ == "__main__":
    main()

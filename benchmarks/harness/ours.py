"""Contestants of this project: the Ray Data stream, and the same work in plain processes."""

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

from harness.workload import ENDLESS, SEED, Workload, rate
from terrafm.data.samples.builder import make_block
from terrafm.data.shards.cell_cache import open_cache
from terrafm.data.shards.cells import CellReader


def stream(work: Workload, ordered: bool = True) -> dict[str, Any]:
    """`stream_batches` of one rank; its consumer takes batches and does nothing else.

    `ordered=False` takes blocks as they are finished. What a batch then says of its rows is
    wrong, so that all its samples must have crops of equal shapes (`keep_probability=1`), and
    every block must be one batch: the first blocks are not smaller than the others.
    """
    # Before any import of Ray: its variables are read then.
    from terrafm.ray.runtime import ensure_ray

    ensure_ray(work.workers + 1)
    import ray.data

    from terrafm.data.samples import stream as our_stream

    if not ordered:
        _drop_order(ray.data.Dataset)
        our_stream._FIRST_ROWS = work.layout.micro_rows
    batches = our_stream.stream_batches(
        work.dataset,
        work.plan,
        work.data,
        seed=SEED,
        layout=work.layout,
        start_step=0,
        stop_step=ENDLESS,
        high_frequency=(),
        cpus=work.workers,
    )
    with contextlib.closing(batches):
        # Closed before Ray ends: a stream that still asks for tasks would start another.
        result = rate((len(batch.samples) for batch in batches), work)
    ray.shutdown()
    return result


def _drop_order(dataset: Any) -> None:
    iterate = dataset.iter_batches

    def unordered(self: Any, *arguments: Any, **options: Any) -> Any:
        self.context.execution_options.preserve_order = False
        return iterate(self, *arguments, **options)

    dataset.iter_batches = unordered


def plain(work: Workload) -> dict[str, Any]:
    """Read, decode and crop in processes without a framework; nothing is sent anywhere.

    Each process works on a stretch of the plan of its own, block by block, in the function that
    the stream's tasks run, and leaves its crops in a buffer of its own memory. All work until
    the slowest has measured.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(work.workers)
    left = context.Value("i", work.workers)
    answers = context.Queue()
    processes = [
        context.Process(target=_work, args=(work, number, ready, left, answers))
        for number in range(work.workers)
    ]
    for process in processes:
        process.start()
    results = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "rate": sum(result["rate"] for result in results),
        "first": max(result["first"] for result in results),
        "tiles": sum(result["tiles"] for result in results),
    }


def _work(work: Workload, number: int, ready: Any, left: Any, answers: Any) -> None:
    blocks = _blocks(work, number)
    ready.wait()
    result = rate(blocks, work)
    with left.get_lock():
        left.value -= 1
    while left.value:
        next(blocks)
    answers.put(result)


def _blocks(work: Workload, number: int) -> Iterator[int]:
    rows = work.data.rows_per_block
    steps = 1 + 100 * rows // work.layout.rows_per_rank
    for stretch in itertools.count():
        first = (stretch * work.workers + number) * steps
        instructions = work.builder.instructions(first, first + steps)
        for start in range(0, instructions.num_rows, rows):
            block = instructions.slice(start, rows)
            make_block(block, work.builder.samples)
            yield block.num_rows


def tile_seconds(work: Workload) -> dict[str, Any]:
    """Seconds of read, decode and crop of single tiles, one process: their distribution."""
    instructions = work.builder.instructions(0, 100)
    seconds = []
    begin = time.perf_counter()
    for row in itertools.cycle(range(instructions.num_rows)):
        start = time.perf_counter()
        make_block(instructions.slice(row, 1), work.builder.samples)
        end = time.perf_counter()
        if end - begin > work.warm_up:
            seconds.append(end - start)
        if end - begin > work.warm_up + work.seconds:
            return {"seconds": seconds}
    raise AssertionError("the cycle has no end")


def fill_cache(work: Workload) -> dict[str, Any]:
    """Reads every tile once, and waits for the cache after each, so that it passes nothing over."""
    assert work.data.cache_dir is not None
    reader = CellReader(work.uri, work.dataset.groups, work.data)
    cache = open_cache(work.data.cache_dir, work.data.cache_bytes)
    for row in range(len(work.dataset)):
        reader.read(work.dataset.locations([row]))
        cache.flush()
    return cache.numbers()._asdict()

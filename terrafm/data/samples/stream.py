"""The plan as a Ray Data stream: crops are made in tasks, micro-batches on the training rank.

Each rank streams its own datasets: its instructions (a small row per sample, made from the plan)
go to data workers that read, decode and crop, and come back in order as one flat buffer per
micro-batch. No split between ranks, no barrier, no shuffle: the plan has decided everything
before. What a rank gets is bit for bit what `make_batches` makes in one process.

Data workers are a pool of actors, one for a CPU: while one works, its next instructions wait at
its door, so that no processor stands idle between two blocks.
"""

import logging
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from terrafm.config import DataConfig
from terrafm.data.samples.batch import HostBatch
from terrafm.data.samples.builder import BatchRows, DataWorker, open_block
from terrafm.data.samples.loader import BatchBuilder, RankLayout, make_batches
from terrafm.data.samples.plan import Plan
from terrafm.data.shards.dataset import Dataset
from terrafm.ray.runtime import SchedulingPause
from terrafm.ray.standby import data_worker_environment

__all__ = ["RankLayout", "make_batches", "stream_batches"]

# Rows of one Ray dataset: bounds the driver's lists of blocks in runs of any length, at the price
# of new data workers, a few seconds. The first is short, so that it is soon made.
_FIRST_SEGMENT_ROWS = 20_000
_SEGMENT_ROWS = 400_000
PREFETCH_BATCHES = 2
"""Batches that are made ahead."""
# Rows of the first blocks; they double from there, so that the first batch does not wait for a
# whole block and the later ones do not pay a task's fixed cost for a few tiles.
_FIRST_ROWS = 8
# Most bytes of a block: beyond this its fixed cost no longer shows, only its memory.
_BLOCK_BYTES = 512 << 20
# All ranks of a node share its object store: together they take no more than this part of it.
_STORE_SHARE = 0.8
# Blocks of instructions at a data worker, the one that it works on included.
_TASKS_AT_A_WORKER = 3
# Where more share a rank's work, there are processors for their imports.
_MOST_STANDBY = 4
# Ray counts CPUs in ten-thousandths; a data worker must hold some.
_LEAST_CPUS = 0.01


def stream_batches(
    dataset: Dataset,
    plan: Plan,
    config: DataConfig,
    *,
    seed: int,
    layout: RankLayout,
    start_step: int,
    stop_step: int,
    high_frequency: Sequence[int],
    cpus: float,
    begin_transfer: Callable[[HostBatch], HostBatch] = lambda batch: batch,
    standby: bool = False,
) -> Generator[HostBatch, None, None]:
    """The micro-batches of a rank, made by Ray Data; equal to those of `make_batches`.

    Closing the iterator ends the data workers. Ray must be initialised.

    Args:
        dataset: an open dataset whose URI every node can read.
        plan: over all of its tiles.
        config: crops, modality augmentation, rows per task, batches made ahead.
        seed: of the run.
        layout: this rank's share.
        start_step: first step.
        stop_step: step after the last one.
        high_frequency: classes that the second center averages over.
        cpus: logical CPUs of this rank's data workers: one each, or the fraction of one.
        begin_transfer: called with each micro-batch in the thread that makes it, ahead of the
            consumer, who gets what it returns.
        standby: beside each data worker another process waits, for the next stream.

    Yields:
        `layout.n_micro` batches per step.

    Raises:
        UsageError: the dataset does not fit the plan or the configuration.
        TerraFMError: a cell cannot be read; names shard and tile.
    """
    builder = BatchBuilder(
        dataset, plan, config, seed=seed, layout=layout, high_frequency=high_frequency
    )

    def produce() -> Generator[HostBatch, None, None]:
        segments = list(_segments(start_step, stop_step, layout.rows_per_rank))
        with ThreadPoolExecutor(1, thread_name_prefix="terrafm-instructions") as ahead:
            # While one segment streams, the next one is looked up.
            coming = [ahead.submit(builder.instructions, *bounds) for bounds in segments[:1]]
            for bounds in [*segments[1:], None]:
                instructions = coming.pop().result()
                if bounds is not None:
                    coming.append(ahead.submit(builder.instructions, *bounds))
                yield from _stream_segment(
                    builder, instructions, config, cpus, begin_transfer, standby
                )

    return _ahead(produce, PREFETCH_BATCHES)


def _segments(start: int, stop: int, rows_per_step: int) -> Iterator[tuple[int, int]]:
    """First and last step, exclusive, of each Ray dataset."""
    rows = _FIRST_SEGMENT_ROWS
    while start < stop:
        end = min(stop, start + max(1, rows // rows_per_step))
        yield start, end
        start, rows = end, _SEGMENT_ROWS


def _stream_segment(
    builder: BatchBuilder,
    instructions: pa.Table,
    config: DataConfig,
    cpus: float,
    begin_transfer: Callable[[HostBatch], HostBatch],
    standby: bool,
) -> Iterator[HostBatch]:
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    share = store * _STORE_SHARE / builder.layout.world_size
    sample = instructions.slice(0, 64)
    row_bytes = 2 * builder.samples.pixels(builder.samples.views(sample)) // sample.num_rows
    fitting = max(1, int(min(_BLOCK_BYTES, share / 4)) // row_bytes)
    micro_rows = builder.layout.micro_rows
    limit = _block_limit(micro_rows, min(config.rows_per_block, fitting))
    # Batches are pieces of blocks: those made ahead and the one in use stay in the store.
    held = (PREFETCH_BATCHES + 2) * max(limit, micro_rows) * row_bytes
    workers = max(1, int(cpus))
    worker_cpus = min(1.0, max(_LEAST_CPUS, cpus))
    context = _context(workers, worker_cpus, limit * row_bytes, share - held)
    blocks = []
    first = 0
    for rows in _block_rows(instructions.num_rows, limit, workers, micro_rows):
        blocks.append(instructions.slice(first, rows))
        first += rows
    with ray.data.DataContext.current(context):
        made = ray.data.from_blocks(blocks).map_batches(
            DataWorker,
            fn_constructor_args=(builder.samples, standby and workers <= _MOST_STANDBY),
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(blocks)), max_tasks_in_flight_per_actor=_TASKS_AT_A_WORKER
            ),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=worker_cpus,
            # In place of the hook that a training process has.
            **({"runtime_env": {"env_vars": data_worker_environment()}} if standby else {}),
        )
    ready = iter(made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    parts: list[BatchRows] = []
    taken = 0
    try:
        for block in ready:
            for part in open_block(block):
                parts.append(part)
                rows = sum(part.rows for part in parts)
                if rows == micro_rows:
                    yield begin_transfer(builder.batch(instructions.slice(taken, rows), parts))
                    taken += rows
                    parts = []
    finally:
        # Ends the execution now: workers and blocks would live until garbage collection.
        ready.close()


def _block_limit(micro_rows: int, most: int) -> int:
    """Rows of a block: whole micro-batches, or equal parts of one."""
    if most >= micro_rows:
        return most - most % micro_rows
    return -(-micro_rows // -(-micro_rows // most))


def _block_rows(total: int, limit: int, width: int, micro_rows: int) -> Iterator[int]:
    """Rows of each block: small ones first; a micro-batch that has been begun is finished."""
    number = first = 0
    while first < total:
        rows = min(limit, _FIRST_ROWS << min(number // width, 30), total - first)
        begun = first % micro_rows
        if begun:
            rows = min(rows, micro_rows - begun)
        elif rows > micro_rows:
            rows -= rows % micro_rows
        yield rows
        first += rows
        number += 1


def _context(
    workers: int, worker_cpus: float, block_bytes: int, store: float
) -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    # A block stays whole: its rows are cut to measure already.
    context.target_max_block_size = 2 * block_bytes
    with warnings.catch_warnings():
        # Near the rank while there is room, never inside its placement group. Deprecated, but
        # Ray 2.60 has nothing in its place: left alone, workers and their blocks go to all nodes.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        context.scheduling_strategy = "DEFAULT"
    # A rank that evaluates for an hour takes nothing from its stream, and that is no fault.
    context.execution_no_progress_timeout_s = -1
    # Of each worker a block in the making and two finished ones, and two on their way to the rank.
    wanted = block_bytes * (3 * workers + 2)
    context.custom_execution_callback_classes = [SchedulingPause]
    options = context.execution_options
    options.preserve_order = True
    options.verbose_progress = False
    options.resource_limits = options.resource_limits.for_limits(
        cpu=workers * worker_cpus, object_store_memory=max(2 * block_bytes, min(wanted, store))
    )
    # Ray Data announces every execution, and once that its progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return context


def _ahead(
    produce: Callable[[], Generator[HostBatch, None, None]], depth: int
) -> Generator[HostBatch, None, None]:
    """Runs a generator in a thread, `depth` items ahead; closing this one closes that one."""
    if depth == 0:
        yield from produce()
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def offer(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def run() -> None:
        batches = produce()
        try:
            for batch in batches:
                offer(batch)
                if stop.is_set():
                    return
            offer(end)
        except BaseException as error:  # noqa: BLE001
            # Whatever it is, it belongs to the consumer.
            offer(error)
        finally:
            batches.close()

    thread = threading.Thread(target=run, name="terrafm-stream", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        # Long enough for blocks in the making; a lost cluster must not keep the process alive.
        thread.join(timeout=60)

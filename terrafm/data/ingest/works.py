"""Shards as units of an ingest's work: cut or thinned, by Ray's tasks or in this process."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import CellRef, Source
from terrafm.data.ingest.cutter import Cutter
from terrafm.data.ingest.tally import Tally
from terrafm.data.ingest.thinning import write_thinned
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.folder import remove_halves
from terrafm.data.shards.writer import read_shard_entry, write_shard
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import to_json
from terrafm.storage.faults import explain

Progress = Callable[[int, int], None]
"""Cells that are done, and all."""


@dataclass(frozen=True)
class IngestJob:
    """What every task needs; `key` tells shards of these settings from leftovers of others."""

    archive: Source
    cutter: Cutter
    output_uri: str
    key: str

    def finished(self, work: Work) -> ShardEntry | None:
        """The entry of a shard that these settings have written whole already."""
        entry = read_shard_entry(self.output_uri, work.name)
        return entry if entry is not None and entry.extra.get("key") == work.key(self) else None


@dataclass(frozen=True)
class Cut:
    """A shard to be cut from cells of the archive."""

    name: str
    refs: list[CellRef]

    @property
    def cells(self) -> int:
        """How far a progress bar goes with it."""
        return len(self.refs)

    def key(self, job: IngestJob) -> str:
        """What its entry is recognised by."""
        return job.key

    def write(self, job: IngestJob) -> None:
        """Writes the shard, and what was counted into its entry."""
        tally = Tally()
        extra: dict[str, Any] = {"key": self.key(job)}

        def records() -> Any:
            for ref in self.refs:
                yield from job.cutter.tiles(job.archive, ref, tally)
            extra["tally"] = tally.to_json()

        write_shard(job.output_uri, self.name, records(), job.cutter.groups, extra)


@dataclass(frozen=True)
class Thin:
    """A finished shard to be written again with some of its tiles."""

    entry: ShardEntry
    rows: NDArray[np.bool_]
    cells: int = 0

    @property
    def name(self) -> str:
        """Beside that of the shard it is made of."""
        return f"{self.entry.name}-thinned"

    def key(self, job: IngestJob) -> str:
        """What its entry is recognised by."""
        return digest([job.key, self.entry.sha256, self.rows.tolist()])

    def write(self, job: IngestJob) -> None:
        """Writes the shard."""
        groups, extra = job.cutter.groups, {"key": self.key(job)}
        write_thinned(job.output_uri, self.entry, self.rows, self.name, groups, extra)


Work = Cut | Thin


def run_works(
    job: IngestJob, works: Sequence[Work], workers: int | None, progress: Progress | None = None
) -> list[ShardEntry]:
    """Does what is not done yet.

    Args:
        job: what all have in common.
        works: shards to be written.
        workers: tasks of Ray at most; 0 works in this process, None leaves it to the cluster.
        progress: told after each.

    Returns:
        The entries of all shards, in the order of the works.

    Raises:
        UsageError, TerraFMError: the first shard that cannot be written; no halves are left.
    """
    total = sum(work.cells for work in works)
    missing = [work for work in works if job.finished(work) is None]
    done = total - sum(work.cells for work in missing)
    if progress is not None:
        progress(done, total)
    results = _results(job, missing, workers)
    try:
        for result in results:
            if result["error"]:
                raise (UsageError if result["usage"] else TerraFMError)(result["error"])
            done += result["cells"]
            if progress is not None:
                progress(done, total)
    except TerraFMError:
        # The other workers are cut off in the middle of their shards.
        results.close()
        with suppress(TerraFMError, OSError):
            remove_halves(job.output_uri)
        raise
    entries = [job.finished(work) for work in works]
    return [entry for entry in entries if entry is not None]


def _results(
    job: IngestJob, works: Sequence[Work], workers: int | None
) -> Generator[dict[str, Any]]:
    """What `_write_one` has answered, as the works are done; with 0 workers in this process."""
    rows = [{"cells": work.cells, "work": pickle.dumps(work)} for work in works]
    if workers == 0 or not works:
        yield from (_write_one(row, job) for row in rows)
        return
    # Ray takes seconds to load: not before all that needs none has been checked.
    import ray.data

    from terrafm.ray.runtime import ensure_ray

    ensure_ray(workers)
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _write_one, fn_args=(job,), num_cpus=1, concurrency=workers
    )
    yield from tasks.iter_rows()


def _write_one(row: dict[str, Any], job: IngestJob) -> dict[str, Any]:
    # Errors as values: Ray would wrap the exception in a traceback of its own.
    error, usage = "", False
    # Packed by this job's own driver, for rows hold no objects.
    work: Work = pickle.loads(row["work"])  # nosec B301
    where = f"shard {work.name} of {job.output_uri}"
    try:
        work.write(job)
    except TerraFMError as reason:
        error, usage = f"{where}: {reason}", isinstance(reason, UsageError)
    except OSError as reason:
        fault = explain(reason, "write", where)
        error, usage = str(fault), isinstance(fault, UsageError)
    return {"cells": row["cells"], "error": error, "usage": usage}


def digest(value: Any) -> str:
    """16 hex digits by which settings, cells or rows are recognised."""
    return hashlib.sha256(to_json(value, sort_keys=True).encode()).hexdigest()[:16]

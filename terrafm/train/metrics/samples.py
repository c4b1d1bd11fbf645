"""What a run did with single tiles: samples.parquet, quarantine.jsonl, nonfinite.jsonl.

The first two are on file before the checkpoint that counts them as done. Samples forget what lies
past the step a run resumes from; the lists of faults are evidence and forget nothing.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrafm.data.samples.batch import HostBatch
from terrafm.storage import exists, read_json_lines, to_json, write_bytes, write_json_lines
from terrafm.storage.parquet import read_parquet
from terrafm.train.metrics.log import MetricsLog
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)


SampleRow = tuple[int, int, str, int, int]
"""Step, rank, tile, epoch and position of a consumed sample."""

_SAMPLES_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("rank", pa.int32()),
        ("tile_id", pa.string()),
        ("epoch", pa.int64()),
        ("position", pa.int64()),
    ]
)


class SampleAudit:
    """Every sample that a rank consumed since the last `take`."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._rows: list[SampleRow] = []

    def add(self, step: int, batches: Sequence[HostBatch]) -> None:
        """Records a step's micro-batches."""
        for batch in batches:
            for _, tile, epoch, position in batch.samples.counted():
                self._rows.append((step, self._rank, tile, epoch, position))

    def take(self) -> list[SampleRow]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


class DamageLog:
    """Damaged tiles that a rank met since the last `take`; each is warned of once."""

    def __init__(self) -> None:
        self._new: list[dict[str, str]] = []
        self._known: set[tuple[str, str]] = set()

    def add(self, batches: Sequence[HostBatch]) -> None:
        """Records the damage that a step's micro-batches report."""
        for record in (record for batch in batches for record in batch.samples.damage):
            key = record["tile"], record["cell"]
            if key not in self._known:
                self._known.add(key)
                self._new.append(record)
                logger.warning("left out: tile %(tile)s of %(shard)s: %(cell)s %(reason)s", record)

    def take(self) -> list[dict[str, str]]:
        """The records since the last call."""
        records, self._new = self._new, []
        return records


class PendingRecords:
    """What a run's next checkpoint counts as done and is not on file yet, on rank 0.

    Args:
        run_folder: URI of the run.
        log: its metrics.
    """

    def __init__(self, run_folder: str, log: MetricsLog) -> None:
        self._folder = run_folder
        self._log = log
        self._damage: list[dict[str, str]] = []
        self._samples: list[SampleRow] = []

    def add(self, damage: Sequence[dict[str, str]], samples: Sequence[SampleRow]) -> None:
        """Takes records in; what comes while `write` runs waits for the next."""
        self._damage.extend(damage)
        self._samples.extend(samples)

    def write(self) -> None:
        """Puts everything on file; after a failure it is all there for the next call.

        Raises:
            StoreRefusedError, StoreFailedError: disk or store do not take it.
        """
        damage, samples = self._damage.copy(), self._samples.copy()
        append_quarantine(self._folder, damage)
        del self._damage[: len(damage)]
        if samples:
            append_samples(self._folder, samples)
        del self._samples[: len(samples)]
        self._log.flush()


def append_quarantine(run_folder: str, records: Sequence[dict[str, str]]) -> None:
    """Adds damaged tiles to quarantine.jsonl, one line for each tile and cell."""
    _append_once(RunFolder(run_folder).quarantine, records)


def append_nonfinite(run_folder: str, records: Sequence[dict[str, Any]]) -> None:
    """Adds the tiles of a skipped step to nonfinite.jsonl; a step done again adds none."""
    _append_once(RunFolder(run_folder).nonfinite, records)


def _append_once(uri: str, records: Sequence[dict[str, Any]]) -> None:
    before = read_json_lines(uri)
    known = {to_json(record, sort_keys=True) for record in before}
    new = {to_json(record, sort_keys=True) for record in records} - known
    if new:
        write_json_lines(uri, [*before, *map(json.loads, sorted(new))])


def trim_samples(run_folder: str, start_step: int) -> None:
    """Drops rows of samples.parquet that belong to steps not in the restored state."""
    uri = RunFolder(run_folder).samples
    if exists(uri):
        table = read_parquet(uri)
        _write_samples(uri, table.filter(pc.less(table["step"], start_step)))


def append_samples(run_folder: str, rows: Sequence[SampleRow]) -> None:
    """Adds rows, at least one, to samples.parquet, which is replaced as a whole.

    Rows of their first step and of later ones are dropped first: an earlier attempt, of which only
    the answer failed, may have left them.
    """
    uri = RunFolder(run_folder).samples
    columns = list(zip(*sorted(rows, key=lambda r: (r[0], r[1])), strict=True))
    table = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, _SAMPLES_SCHEMA, strict=True)],
        schema=_SAMPLES_SCHEMA,
    )
    if exists(uri):
        before = read_parquet(uri)
        kept = before.filter(pc.less(before["step"], min(row[0] for row in rows)))
        table = pa.concat_tables([kept, table])
    _write_samples(uri, table)


def _write_samples(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(uri, buffer.getvalue())

"""What a run writes while it goes: metrics.jsonl and trackers, samples.parquet, lists of faults.

Metrics, TensorBoard and samples forget what lies past the step a run resumes from, so that they
always tell the surviving history, once. The lists of faults are evidence and forget nothing.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrafm.data.samples.batch import HostBatch
from terrafm.storage import exists, is_local, join, read_bytes, resolve, write_bytes
from terrafm.train.tracker_clients import open_trackers
from terrafm.train.trackers import TrackedRun

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
NONFINITE_FILE = "nonfinite.jsonl"
SAMPLES_FILE = "samples.parquet"

_SAMPLES_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("rank", pa.int32()),
        ("tile_id", pa.string()),
        ("epoch", pa.int64()),
        ("position", pa.int64()),
    ]
)


def read_metrics(run_folder: str) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order."""
    uri = join(run_folder, METRICS_FILE)
    if not exists(uri):
        return []
    lines = []
    for line in read_bytes(uri).decode().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            # A killed writer may leave the start of a line.
            break
    return lines


class MetricsLog:
    """metrics.jsonl and the trackers of one run, written by rank 0.

    Args:
        run_folder: URI of the run.
        start_step: finished steps of the state the run goes on from; later lines go.
        trackers: names of `train.trackers`.
        config: the configuration tree as plain values, for the trackers.
    """

    def __init__(
        self,
        run_folder: str,
        start_step: int,
        trackers: Sequence[str] = ("tensorboard",),
        config: dict[str, Any] | None = None,
    ) -> None:
        self._local = is_local(run_folder)
        kept = [line for line in read_metrics(run_folder) if line["step"] <= start_step]
        self._lines = [json.dumps(line) + "\n" for line in kept]
        self._uri = join(run_folder, METRICS_FILE)
        write_bytes(self._uri, "".join(self._lines).encode())
        if self._local:
            self._file = open(resolve(self._uri)[1], "a", buffering=1)  # noqa: SIM115 - close()
        self._trackers = open_trackers(trackers, TrackedRun(run_folder, start_step, config or {}))

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends one line; `metrics["step"]` counts finished steps.

        Trackers get its numbers. A number that is not finite stands as null, since JSON has none.
        """
        numbers = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and name != "step"
        }
        for tracker in self._trackers.values():
            tracker.write(metrics["step"], numbers)
        off = {n: tracker.failure for n, tracker in self._trackers.items() if tracker.failure}
        lost = dict.fromkeys(name for name, value in numbers.items() if not math.isfinite(value))
        line = json.dumps(metrics | lost | ({"trackers_off": off} if off else {})) + "\n"
        if self._local:
            self._file.write(line)
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Makes all lines visible; object stores take no appends, so they get whole files."""
        for tracker in self._trackers.values():
            tracker.flush()
        if not self._local:
            write_bytes(self._uri, "".join(self._lines).encode())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._local:
            self._file.close()
        for tracker in self._trackers.values():
            tracker.close()


class SampleAudit:
    """Every sample that a rank consumed since the last `take`."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._rows: list[tuple[int, int, str, int, int]] = []

    def add(self, step: int, batches: Sequence[HostBatch]) -> None:
        """Records a step's micro-batches; padding rows carry weight 0 and do not count."""
        for batch in batches:
            for weight, tile, epoch, position in zip(
                batch.sample_weight.tolist(),
                batch.tile_id,
                batch.epoch.tolist(),
                batch.position.tolist(),
                strict=True,
            ):
                if weight:
                    self._rows.append((step, self._rank, tile, epoch, position))

    def take(self) -> list[tuple[int, int, str, int, int]]:
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
        for record in (record for batch in batches for record in batch.damage):
            key = record["tile"], record["cell"]
            if key not in self._known:
                self._known.add(key)
                self._new.append(record)
                logger.warning("left out: tile %(tile)s of %(shard)s: %(cell)s %(reason)s", record)

    def take(self) -> list[dict[str, str]]:
        """The records since the last call."""
        records, self._new = self._new, []
        return records


def append_quarantine(run_folder: str, records: Sequence[dict[str, str]]) -> None:
    """Adds damaged tiles to quarantine.jsonl, one line for each tile and cell."""
    _append_once(join(run_folder, QUARANTINE_FILE), records)


def append_nonfinite(run_folder: str, records: Sequence[dict[str, Any]]) -> None:
    """Adds the tiles of a skipped step to nonfinite.jsonl; a step done again adds none."""
    _append_once(join(run_folder, NONFINITE_FILE), records)


def _append_once(uri: str, records: Sequence[dict[str, Any]]) -> None:
    lines = read_bytes(uri).decode().splitlines() if exists(uri) else []
    new = {json.dumps(record, sort_keys=True) for record in records} - set(lines)
    if new:
        write_bytes(uri, "".join(line + "\n" for line in [*lines, *sorted(new)]).encode())


def trim_samples(run_folder: str, start_step: int) -> None:
    """Drops rows of samples.parquet that belong to steps not in the restored state."""
    uri = join(run_folder, SAMPLES_FILE)
    if exists(uri):
        table = pq.read_table(pa.BufferReader(read_bytes(uri)))
        _write_samples(uri, table.filter(pc.less(table["step"], start_step)))


def append_samples(run_folder: str, rows: Sequence[tuple[int, int, str, int, int]]) -> None:
    """Adds rows to samples.parquet, which is replaced as a whole."""
    uri = join(run_folder, SAMPLES_FILE)
    columns = list(zip(*sorted(rows, key=lambda r: (r[0], r[1])), strict=True)) or [()] * 5
    table = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, _SAMPLES_SCHEMA, strict=True)],
        schema=_SAMPLES_SCHEMA,
    )
    if exists(uri):
        table = pa.concat_tables([pq.read_table(pa.BufferReader(read_bytes(uri))), table])
    _write_samples(uri, table)


def _write_samples(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(uri, buffer.getvalue())

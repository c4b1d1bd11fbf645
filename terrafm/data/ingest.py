"""Archive to dataset: cells -> tiles -> shards, as one Ray Data job.

Which cells make a shard depends on the archive alone, never on the number of readers, so that
the same archive gives the same bytes on any machine. A shard that is complete is not written
again: an ingest that was killed goes on where it stopped when it is repeated.
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.data
from rich.text import Text

from terrafm.config import IngestConfig
from terrafm.data.landcover import WORLDCOVER_URI, WorldCover, legend
from terrafm.data.manifest import Manifest, manifest_name, read_manifest
from terrafm.data.shards import ShardEntry, commit_dataset, read_shard_entry, write_shard
from terrafm.data.sources.base import CellRef, Layout, Source
from terrafm.data.sources.registry import open_source
from terrafm.data.tally import Tally
from terrafm.data.tiling import Cutter, make_groups
from terrafm.errors import TerraFMError, UsageError
from terrafm.faults import explain
from terrafm.modalities import MODALITIES
from terrafm.ray_runtime import ensure_ray
from terrafm.storage import (
    absolute,
    ensure_writable,
    exists,
    join,
    list_names,
    remove,
    write_bytes,
)

QUARANTINE = "quarantine.jsonl"
# Settings that change how an ingest runs or ends, but not the tiles it makes.
_NOT_CONTENT = {"workers", "max_bad_fraction"}
_OCEAN_DROP = {"geotiff": 0.0}
_DEFAULT_OCEAN_DROP = 0.98
# Small archives are still divided among several readers.
_LEAST_SHARDS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        uri: the dataset.
        tiles: tiles in it.
        fingerprint: of its content.
        already_complete: nothing had to be done.
        details: the report stored in the dataset's manifest.
    """

    uri: str
    tiles: int
    fingerprint: str
    already_complete: bool
    details: dict[str, Any]

    def render(self) -> Text:
        """One paragraph for the terminal."""
        counts = self.details["selection"]
        head = "already complete" if self.already_complete else "done"
        parts = [f"{head}: {self.tiles} tiles of {counts['cells']} cells"]
        if counts["water_only_dropped"]:
            parts.append(f"{counts['water_only_dropped']} of open sea dropped")
        if counts["edge_pixels_dropped"]:
            parts.append(f"{counts['edge_pixels_dropped']} pixels at the edges dropped")
        text = Text(", ".join(parts) + f"\ndataset {self.uri}, fingerprint {self.fingerprint[:16]}")
        if faults := self.details["quarantine"]["faults"]:
            lost = counts["tiles_quarantined"]
            text.append(
                f"\n{lost} tiles in quarantine, {faults} faults: {join(self.uri, QUARANTINE)}",
                style="yellow",
            )
        return text


def ingest(
    source: str,
    input_uri: str,
    output_uri: str,
    *,
    worldcover: str | None = None,
    tile_size: int = 534,
    modalities: tuple[str, ...] = tuple(MODALITIES),
    config: IngestConfig | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Makes a dataset from an archive.

    Args:
        source: "geotiff", "major-tom" or "synthetic".
        input_uri: the archive, or the specification of a synthetic one.
        output_uri: folder of the dataset.
        worldcover: folder of ESA WorldCover tiles, for cells without a land-cover raster of their
            own; by default tiles that lie in the archive, else ESA's public bucket.
        tile_size: side of a tile, pixels of the finest grid.
        modalities: those to take.
        config: settings; the defaults where None.
        progress: called with (cells done, cells in all) as the work proceeds.

    Raises:
        UsageError: something asked for cannot be (archive, tile size, land cover, another dataset
            at the output); nothing was changed.
        TerraFMError: too many tiles are bad; there is no dataset, but the quarantine list is kept.
    """
    config = config or IngestConfig()
    modalities = _check_modalities(modalities)
    # Readers may run in other folders than this process.
    input_uri, output_uri = _absolute(input_uri), _absolute(output_uri)
    worldcover = _absolute(worldcover) if worldcover else None
    settings = {
        "source": source,
        "input": input_uri,
        "worldcover": worldcover,
        "tile_size": tile_size,
        "modalities": list(modalities),
        "ingest": config.model_dump(mode="json", exclude=_NOT_CONTENT),
    }
    previous = _previous(output_uri, settings)
    archive = open_source(source, input_uri, modalities, join(output_uri, "archive"))
    layout, refs = archive.layout(), archive.cells()
    settings["archive"] = _digest([[ref.cell_id, repr(ref.location)] for ref in refs])
    if previous is not None:
        if previous.report["settings"] != settings:
            raise _occupied(output_uri, "the archive has changed since")
        return IngestReport(output_uri, previous.tiles, previous.fingerprint, True, previous.report)
    cutter = _make_cutter(source, layout, refs, worldcover, tile_size, modalities, config)
    shards = _divide(refs, cutter.tiles_per_cell(layout.shape), config.tiles_per_shard)
    ensure_writable(output_uri)
    job = _Job(archive, cutter, output_uri, _digest([settings, len(shards)]))
    entries = _run(job, shards, config.workers, progress)
    return _commit(job, entries, settings, layout, config.max_bad_fraction)


@dataclass(frozen=True)
class _Job:
    """What every task needs; `key` tells shards of these settings from leftovers of others."""

    archive: Source
    cutter: Cutter
    output_uri: str
    key: str

    def finished(self, number: int) -> ShardEntry | None:
        entry = read_shard_entry(self.output_uri, _shard_name(number))
        return entry if entry is not None and entry.extra.get("key") == self.key else None

    def write(self, number: int, refs: list[CellRef]) -> None:
        tally = Tally()
        extra: dict[str, Any] = {"key": self.key}

        def records() -> Any:
            for ref in refs:
                yield from self.cutter.tiles(self.archive, ref, tally)
            extra["tally"] = tally.to_json()

        write_shard(self.output_uri, _shard_name(number), records(), self.cutter.groups, extra)


def _run(
    job: _Job, shards: list[list[CellRef]], workers: int | None, progress: Progress | None
) -> list[ShardEntry]:
    total = sum(len(refs) for refs in shards)
    missing = [number for number in range(len(shards)) if job.finished(number) is None]
    done = total - sum(len(shards[number]) for number in missing)
    if progress is not None:
        progress(done, total)
    if missing:
        ensure_ray(workers)
        rows = [{"number": n, "cells": pickle.dumps(shards[n])} for n in missing]
        tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _write_one, fn_args=(job,), num_cpus=1, concurrency=workers
        )
        for result in tasks.iter_rows():
            if result["error"]:
                raise (UsageError if result["usage"] else TerraFMError)(result["error"])
            done += len(shards[result["number"]])
            if progress is not None:
                progress(done, total)
    entries = [job.finished(number) for number in range(len(shards))]
    return [entry for entry in entries if entry is not None]


def _write_one(row: dict[str, Any], job: _Job) -> dict[str, Any]:
    # Errors as values: Ray would wrap the exception in a traceback of its own.
    name, error, usage = _shard_name(row["number"]), "", False
    try:
        job.write(row["number"], pickle.loads(row["cells"]))
    except TerraFMError as reason:
        error, usage = f"shard {name} of {job.output_uri}: {reason}", isinstance(reason, UsageError)
    except OSError as reason:
        fault = explain(reason, "write", f"shard {name} of {job.output_uri}")
        error, usage = str(fault), isinstance(fault, UsageError)
    return {"number": row["number"], "error": error, "usage": usage}


def _commit(
    job: _Job,
    entries: list[ShardEntry],
    settings: dict[str, Any],
    layout: Layout,
    max_bad_fraction: float,
) -> IngestReport:
    tally = Tally()
    for entry in entries:
        tally.merge(Tally.from_json(entry.extra["tally"]))
    lines = [json.dumps(fault, sort_keys=True) + "\n" for fault in tally.quarantine]
    write_bytes(join(job.output_uri, QUARANTINE), "".join(lines).encode())
    _check_quality(tally, job.output_uri, max_bad_fraction)
    groups = job.cutter.groups
    report = {"settings": settings, "archive": layout.notes, **tally.summary()}
    manifest = commit_dataset(
        job.output_uri,
        entries,
        tile_size=job.cutter.tile_size,
        gsd=job.cutter.gsd,
        groups=groups,
        statistics=tally.statistics(dict.fromkeys(group.modality for group in groups)),
        legend=legend(tally.codes),
        report=report,
    )
    _remove_leftovers(job.output_uri, {entry.name for entry in entries if entry.bytes})
    return IngestReport(job.output_uri, manifest.tiles, manifest.fingerprint, False, report)


def _remove_leftovers(output_uri: str, shards: set[str]) -> None:
    """Removes shards that an unfinished ingest with other settings left behind."""
    for name in list_names(join(output_uri, "shards")):
        if name.removesuffix(".parquet") not in shards:
            remove(join(output_uri, "shards", name))


def _check_quality(tally: Tally, output_uri: str, max_bad_fraction: float) -> None:
    seen, bad = tally.counts["tiles_seen"], tally.counts["tiles_quarantined"]
    if seen == 0:
        raise UsageError(
            "the cells of the archive are smaller than a tile: take a smaller tile size"
        )
    if bad == seen or bad > max_bad_fraction * seen:
        first = next(fault for fault in tally.quarantine if fault["quarantined"])
        raise TerraFMError(
            f"{bad} of {seen} tiles are bad (ingest.max_bad_fraction is {max_bad_fraction:g}); "
            f"first: {first['what']} {first['modality']}: {first['why']} ({first['where']}); "
            f"all are in {join(output_uri, QUARANTINE)}"
        )
    if tally.counts["tiles"] == 0:
        raise TerraFMError(
            f"all {seen} tiles are open sea and were dropped: lower ingest.ocean_drop, or "
            "see whether --worldcover lacks the tiles of these places"
        )


def _make_cutter(
    source: str,
    layout: Layout,
    refs: list[CellRef],
    worldcover: str | None,
    tile_size: int,
    modalities: tuple[str, ...],
    config: IngestConfig,
) -> Cutter:
    listed = {modality for ref in refs for modality in ref.modalities}
    band_gsd = {m: layout.band_gsd[m] for m in modalities if m in listed}
    groups = make_groups(band_gsd, layout.gsd, tile_size)
    ocean_drop = config.ocean_drop
    if ocean_drop is None:
        ocean_drop = _OCEAN_DROP.get(source, _DEFAULT_OCEAN_DROP)
    cover = None
    if worldcover is not None or not layout.land_cover:
        cover = WorldCover(worldcover or layout.worldcover or WORLDCOVER_URI)
    return Cutter(
        tile_size=tile_size,
        gsd=layout.gsd,
        cell_shape=layout.shape,
        groups=groups,
        required=tuple(m for m in config.require_modalities if m in modalities),
        max_nodata=config.max_nodata,
        ocean_drop=ocean_drop,
        seed=config.seed,
        worldcover=cover,
    )


def _divide(refs: list[CellRef], tiles_per_cell: int, tiles_per_shard: int) -> list[list[CellRef]]:
    full = max(1, tiles_per_shard // max(1, tiles_per_cell))
    size = min(full, -(-len(refs) // _LEAST_SHARDS))
    return [refs[start : start + size] for start in range(0, len(refs), size)]


def _previous(output_uri: str, settings: dict[str, Any]) -> Manifest | None:
    if not exists(join(output_uri, manifest_name())):
        return None
    manifest = read_manifest(output_uri)
    before = manifest.report.get("settings", {})
    for name, value in settings.items():
        if before.get(name) != value:
            raise _occupied(output_uri, f"{name} was {before.get(name)}, now {value}")
    return manifest


def _occupied(output_uri: str, why: str) -> UsageError:
    return UsageError(
        f"{output_uri} holds a complete dataset of other settings ({why}): "
        "nothing was changed; take another --output or remove it"
    )


def _check_modalities(modalities: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [m for m in modalities if m not in MODALITIES]
    if unknown or not modalities:
        raise UsageError(
            f"unknown modality {', '.join(unknown) or '(none given)'}; "
            f"modalities: {', '.join(MODALITIES)}"
        )
    return tuple(m for m in MODALITIES if m in modalities)


def _absolute(uri: str) -> str:
    return uri if uri.startswith("synthetic:") else absolute(uri)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _shard_name(number: int) -> str:
    return f"part-{number:05d}"

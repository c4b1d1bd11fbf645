"""Archive to dataset: cells -> tiles -> shards, as one Ray Data job.

Which cells make a shard depends on the archive alone, never on the number of readers, so that
the same archive gives the same bytes on any machine. A shard that is complete is not written
again: an ingest that was killed goes on where it stopped when it is repeated.
"""

import logging
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from terrafm.config import IngestConfig
from terrafm.data.archive import CellRef, Layout
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.report import QUARANTINE, IngestReport, first_names
from terrafm.data.ingest.tally import Tally
from terrafm.data.ingest.thinning import kept_rows
from terrafm.data.ingest.works import Cut, IngestJob, Progress, Thin, digest, run_works
from terrafm.data.land.climate import ClimateZones
from terrafm.data.land.landcover import WORLDCOVER_URI, WorldCover, legend
from terrafm.data.land.legend import Legend, read_legend
from terrafm.data.land.selection import Limits
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.folder import ARCHIVE, check_folder, remove_shards
from terrafm.data.shards.manifest import Manifest, manifest_name, read_manifest, with_codec
from terrafm.data.sources.folders import misspelt_land_cover
from terrafm.data.sources.offsets import survey_archive
from terrafm.data.sources.pairing import count_pairs
from terrafm.data.sources.registry import open_source
from terrafm.data.sources.scenes.request import SceneRequest, SceneWords, scene_request
from terrafm.errors import TerraFMError, UsageError
from terrafm.modalities import MODALITIES, SENTINEL
from terrafm.storage import (
    absolute,
    canonical,
    check_exists,
    ensure_writable,
    exists,
    is_local,
    join,
    to_json,
    write_bytes,
)
from terrafm.storage.addresses import recorded, without_secrets
from terrafm.storage.lease import lease

logger = logging.getLogger(__name__)

# Settings that change how an ingest runs or ends, but not the tiles it makes.
_NOT_CONTENT = {"workers", "max_bad_fraction", "dates_per_place"}
# Of the ocean rule and of `ingest.max_tiles`.
_SEED = 0
_OCEAN_DROP = {"geotiff": 0.0}
_DEFAULT_OCEAN_DROP = 0.98
# Small archives are still divided among several readers.
_LEAST_SHARDS = 8


def ingest(
    source: str,
    input_uri: str,
    output_uri: str,
    *,
    worldcover: str | None = None,
    legend_uri: str | None = None,
    climate: str | None = None,
    tile_size: int = 534,
    modalities: tuple[str, ...] = SENTINEL,
    scenes: SceneWords | None = None,
    config: IngestConfig | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Makes a dataset from an archive.

    Args:
        source: name of an archive layout, or "package.module:ClassName" of one's own.
        input_uri: the archive, or the specification of a synthetic one.
        output_uri: folder of the dataset.
        worldcover: folder of ESA WorldCover tiles, for cells without a land-cover raster of their
            own; by default tiles that lie in the archive, else ESA's public bucket.
        legend_uri: mapping file for the codes of the archive's own land-cover rasters.
        climate: raster of climate zones in EPSG:4326, for the index and for `ingest.spread`.
        tile_size: side of a tile, pixels of the finest grid.
        modalities: those to take.
        scenes: grid, area and time, of sources of scenes alone.
        config: settings; the defaults where None.
        progress: called with (cells done, cells in all) as the work proceeds.

    Raises:
        UsageError: something asked for cannot be (archive, tile size, land cover, another dataset
            or another writer at the output), or a land-cover code is not in the legend; there is
            no dataset.
        TerraFMError: too many tiles are bad; there is no dataset, but the quarantine list is kept.
    """
    config = config or IngestConfig()
    modalities = _check_modalities(modalities)
    request = scene_request(source, scenes, tile_size, config)
    output_uri = absolute(output_uri)
    with lease(output_uri, "terrafm ingest"):
        return _ingest(
            source, input_uri, output_uri, worldcover, legend_uri, climate, tile_size, modalities,
            request, config, progress,
        )  # fmt: skip


def _ingest(
    source: str,
    input_uri: str,
    output_uri: str,
    worldcover: str | None,
    legend_uri: str | None,
    climate: str | None,
    tile_size: int,
    modalities: tuple[str, ...],
    request: SceneRequest | None,
    config: IngestConfig,
    progress: Progress | None,
) -> IngestReport:
    # Readers may run in other folders than this process, and one archive has one name.
    input_uri = canonical_input(input_uri)
    worldcover = canonical(worldcover) if worldcover else None
    climate = canonical(climate) if climate else None
    mapping = read_legend(legend_uri) if legend_uri else None
    settings = {
        "source": source,
        "input": input_uri,
        "worldcover": worldcover,
        "legend": None if mapping is None else mapping.to_json(),
        "climate": climate,
        "tile_size": tile_size,
        "modalities": list(modalities),
        # The seed was a setting, and stands in manifests of earlier versions.
        "ingest": config.model_dump(mode="json", exclude=_NOT_CONTENT) | {"seed": _SEED},
    }
    if others := [name for name in modalities if name not in SENTINEL]:
        # Entries of other packages may change: what these tiles were stored by is kept.
        settings["sensors"] = {name: asdict(MODALITIES[name]) for name in others}
    if request is not None:
        settings["scenes"] = request.to_json()
    # What is recorded, and compared with what was: a signature may be another each time.
    settings = recorded(settings)
    previous = _previous(output_uri, settings)
    if previous is None:
        check_folder(output_uri)
    # Before an archive is opened, or drawn into the output.
    for named, uri in {
        "the folder of --worldcover": worldcover,
        "the raster of --climate": climate,
    }.items():
        if uri is not None and is_local(uri):
            check_exists(named, uri)
    archive = open_source(source, input_uri, modalities, join(output_uri, ARCHIVE), request)
    layout, refs = archive.layout(), archive.cells()
    if mapping is None and layout.legend_codes:
        mapping = Legend(f"of --source {source}", layout.legend_codes, layout.legend_names)
    settings["archive"] = digest(
        [[ref.cell_id, without_secrets(repr(ref.location))] for ref in refs]
    )
    if previous is not None:
        if previous.report["settings"] != settings:
            raise _occupied(output_uri, "the archive has changed since")
        return IngestReport(output_uri, previous.tiles, previous.fingerprint, True, previous.report)
    cutter = _make_cutter(
        source, input_uri, layout, refs, worldcover, tile_size, modalities, config
    )
    cutter = replace(
        cutter,
        legend=mapping,
        climate=ClimateZones(climate) if climate else None,
        survey=survey_archive(archive, refs),
    )
    _warn_of_lacking(cutter, refs)
    shards = _divide(refs, cutter.tiles_per_cell(layout.shape), config.tiles_per_shard)
    ensure_writable(output_uri)
    job = IngestJob(archive, cutter, output_uri, digest([settings, len(shards)]))
    works = [Cut(_shard_name(number), some) for number, some in enumerate(shards)]
    entries = run_works(job, works, config.workers, progress)
    tally = _count(job, entries, config.max_bad_fraction)
    kept, thinned = _thin(job, entries, config)
    notes = {"pairing": count_pairs(refs)} | layout.notes
    report = {"settings": settings, "archive": notes, **tally.summary(), "max_tiles": thinned}
    return _commit(job, kept, report, mapping)


def _count(job: IngestJob, entries: list[ShardEntry], max_bad_fraction: float) -> Tally:
    """The counts of all shards; the quarantine list is written, and judged."""
    tally = Tally()
    for entry in entries:
        tally.merge(Tally.from_json(entry.extra.get("tally"), entry.name))
    lines = [to_json(fault, sort_keys=True) + "\n" for fault in tally.quarantine]
    write_bytes(join(job.output_uri, QUARANTINE), "".join(lines).encode())
    try:
        _check_quality(tally, job.output_uri, max_bad_fraction)
    except TerraFMError:
        # The archive may be put right before the command is repeated: what was wrong is read anew.
        for entry in entries:
            own = Tally.from_json(entry.extra.get("tally"), entry.name)
            if own.quarantine or not own.counts["tiles"]:
                entry.remove(job.output_uri)
        raise
    return tally


def _thin(
    job: IngestJob, entries: list[ShardEntry], config: IngestConfig
) -> tuple[list[ShardEntry], dict[str, Any]]:
    """Applies `ingest.max_tiles`: the shards that stay, and what it did for the report."""
    tiles = sum(entry.rows.num_rows for entry in entries)
    if config.max_tiles is None or tiles <= config.max_tiles:
        return entries, {}
    masks = kept_rows(entries, config.spread, config.max_tiles, _SEED)
    whole = [entry for entry, rows in zip(entries, masks, strict=True) if rows.all()]
    works = [
        Thin(entry, rows)
        for entry, rows in zip(entries, masks, strict=True)
        if rows.any() and not rows.all()
    ]
    before = Counter[int]()
    for entry in entries:
        before.update(entry.rows["land_cover"].to_pylist())
    report = {
        "tiles_before": tiles,
        "tiles_dropped": tiles - config.max_tiles,
        "spread": list(config.spread),
        "class_counts_before": {str(code): n for code, n in sorted(before.items())},
    }
    return whole + run_works(job, works, config.workers), report


def _commit(
    job: IngestJob,
    entries: list[ShardEntry],
    report: dict[str, Any],
    mapping: Legend | None,
) -> IngestReport:
    tally = Tally()
    for entry in entries:
        tally.merge(Tally.from_json(entry.extra.get("tally"), entry.name))
    groups = job.cutter.groups
    manifest = commit_dataset(
        job.output_uri,
        entries,
        tile_size=job.cutter.tile_size,
        gsd=job.cutter.gsd,
        groups=groups,
        statistics=tally.statistics(dict.fromkeys(group.modality for group in groups)),
        legend=legend(tally.codes, None if mapping is None else mapping.names),
        report=report,
    )
    # What an unfinished ingest with other settings left behind.
    remove_shards(job.output_uri, {entry.name for entry in entries if entry.bytes})
    return IngestReport(job.output_uri, manifest.tiles, manifest.fingerprint, False, report)


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
    if tally.counts["tiles"] == 0 and tally.counts["tiles_over_limits"]:
        raise TerraFMError(
            f"no tile is left of {seen}: {tally.counts['tiles_over_limits']} are of products over "
            "a limit; raise ingest.max_gap_days or ingest.max_cloud_cover"
        )
    if tally.counts["tiles"] == 0:
        raise TerraFMError(
            f"all {seen} tiles are open sea and were dropped: lower ingest.ocean_drop"
        )


def _make_cutter(
    source: str,
    archive: str,
    layout: Layout,
    refs: list[CellRef],
    worldcover: str | None,
    tile_size: int,
    modalities: tuple[str, ...],
    config: IngestConfig,
) -> Cutter:
    listed = {modality for ref in refs for modality in ref.modalities}
    band_gsd = {m: layout.band_gsd[m] for m in modalities if m in listed}
    groups = with_codec(make_groups(band_gsd, layout.gsd, tile_size), config.codec)
    ocean_drop = config.ocean_drop
    if ocean_drop is None:
        ocean_drop = _OCEAN_DROP.get(source, _DEFAULT_OCEAN_DROP)
    cover = None
    if worldcover is not None or not layout.land_cover:
        chosen = worldcover or layout.worldcover
        if chosen is None and (near := misspelt_land_cover(archive)):
            logger.warning("%s is not read: land cover has to lie in LULC/ or WorldCover/", near)
        cover = WorldCover(chosen or WORLDCOVER_URI)
    return Cutter(
        tile_size=tile_size,
        gsd=layout.gsd,
        cell_shape=layout.shape,
        groups=groups,
        required=tuple(m for m in config.require_modalities if m in layout.band_gsd),
        max_nodata=config.max_nodata,
        ocean_drop=ocean_drop,
        seed=_SEED,
        worldcover=cover,
        limits=Limits(config.max_gap_days, config.max_cloud_cover),
        partial=config.allow_missing_bands,
    )


def _warn_of_lacking(cutter: Cutter, refs: list[CellRef]) -> None:
    """Says before the work which WorldCover tiles lack, where the listing tells the places."""
    places = [ref.centre for ref in refs if ref.centre is not None]
    if cutter.worldcover is None or not places:
        return
    lacking = cutter.worldcover.lacking_at(*np.transpose(places))
    if lacking:
        logger.warning(
            "%s lacks WorldCover tiles of this archive (%s): cells there go to quarantine",
            cutter.worldcover.uri,
            first_names(lacking),
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
        "nothing was changed; take another --output, remove it, or add to it with --append"
    )


def _check_modalities(modalities: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [m for m in modalities if m not in MODALITIES]
    if unknown or not modalities:
        raise UsageError(
            f"unknown modality {', '.join(unknown) or '(none given)'}; "
            f"modalities: {', '.join(MODALITIES)}"
        )
    return tuple(m for m in MODALITIES if m in modalities)


def canonical_input(uri: str) -> str:
    """The one name of an archive, which may be no place but a specification."""
    return uri if uri.startswith(("synthetic:", "stac+")) else canonical(uri)


def _shard_name(number: int) -> str:
    return f"part-{number:05d}"

"""More tiles for a complete dataset: a new version beside the old ones.

The archive is ingested into a folder of its own inside the dataset, out of every reader's sight
and with all of ingest's rules. Its shards are then taken over under names of their own; the new
version's manifest is written last. What is stopped on the way goes on when it is repeated. A
dataset has one writer at a time.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from terrafm.config import IngestConfig
from terrafm.data.ingest.adopt import Adoption
from terrafm.data.ingest.job import canonical_input, ingest
from terrafm.data.ingest.report import QUARANTINE, IngestReport
from terrafm.data.ingest.tally import Tally
from terrafm.data.shards.codec import CODECS
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.folder import (
    STAGING,
    check_folder,
    remove_entries,
    remove_shards,
    remove_staged,
)
from terrafm.data.shards.manifest import Manifest, StoredFile, read_manifest
from terrafm.errors import STORE_ERRORS, TerraFMError, UsageError
from terrafm.storage import absolute, exists, join, read_bytes, to_json, write_bytes
from terrafm.storage.lease import lease

_PARALLEL_READS = 16


def append(
    source: str,
    input_uri: str,
    output_uri: str,
    *,
    tile_size: int = 534,
    config: IngestConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> IngestReport:
    """Adds the tiles of an archive, or of one that has grown, to a dataset as a new version.

    A tile that the dataset holds already, equal in pixels, place, class and products, is left
    out; so a grown archive can be given whole. Older versions are not touched. Statistics are
    those of all tiles of the new version, from integer sums.

    Args:
        source: as for `ingest`.
        input_uri: the archive.
        output_uri: the dataset.
        tile_size: side of a tile, pixels; that of the dataset.
        config: settings; the codec is that of the dataset.
        progress: called with (cells done, cells in all).
        options: the other arguments of `ingest`.

    Returns:
        What the new version holds; `already_complete` where the archive brought nothing new.

    Raises:
        UsageError: there is no complete dataset, or the archive does not fit it (tile size, GSD,
            bands, codec, legend), or it has another writer; nothing was changed.
        TerraFMError: as `ingest`; or a tile id that the dataset holds with other content.
    """
    config = config or IngestConfig()
    if not exists(output_uri):
        # The lease would make it, and this says that it is missing.
        read_manifest(output_uri)
    with lease(output_uri, "terrafm ingest --append"):
        return _append(
            source, input_uri, absolute(output_uri), tile_size, config, progress, options
        )


def _append(
    source: str,
    input_uri: str,
    output_uri: str,
    tile_size: int,
    config: IngestConfig,
    progress: Callable[[int, int], None] | None,
    options: dict[str, Any],
) -> IngestReport:
    base = read_manifest(output_uri)
    _check_settings(base, output_uri, tile_size, config)
    check_folder(output_uri)
    held = _read_entries(output_uri, base)
    what = [
        source,
        canonical_input(input_uri),
        tile_size,
        config.model_dump(mode="json"),
        repr(options),
    ]
    key = hashlib.sha256(to_json(what).encode()).hexdigest()[:16]
    staging = join(output_uri, STAGING, key)
    ingest(
        source,
        input_uri,
        staging,
        tile_size=tile_size,
        config=config,
        progress=progress,
        **options,
    )
    try:
        result = _take_over(output_uri, base, held, staging)
    except STORE_ERRORS:
        # What is staged is sound: repeated, the command takes it over.
        raise
    except TerraFMError:
        # An archive that was refused is read anew when it has been put right.
        remove_staged(output_uri)
        raise
    remove_staged(output_uri)
    return result


def _take_over(
    output_uri: str, base: Manifest, held: list[ShardEntry], staging: str
) -> IngestReport:
    added = Dataset.open(staging)
    _check_fits(base, added.manifest, output_uri)
    version = base.version + 1
    adoption = Adoption(Dataset.open(output_uri, base.version), added, f"v{version}")
    staged = _read_entries(staging, added.manifest)
    taken = [(entry, new) for entry in staged if (new := adoption.take(entry)) is not None]
    adopted = [new for _, new in taken]
    if not adopted:
        return IngestReport(output_uri, base.tiles, base.fingerprint, True, base.report)
    entries = [*held, *adopted]
    tally = Tally()
    for entry in entries:
        tally.merge(Tally.from_json(entry.extra.get("tally"), entry.name))
    report = _merged_report(base, added, [entry for entry, _ in taken], adoption)
    if exists(join(staging, QUARANTINE)):
        # One file for each version: what an older one could not use stays as it is.
        name = QUARANTINE.replace(".", f"-{version}.")
        write_bytes(join(output_uri, name), read_bytes(join(staging, QUARANTINE)))
    # What an append of other tiles, never finished, took over for this version.
    taken_over = {entry.name for entry in adopted}
    remove_shards(output_uri, taken_over, f"{adoption.prefix}-")
    remove_entries(output_uri, taken_over, f"{adoption.prefix}-")
    manifest = commit_dataset(
        output_uri,
        entries,
        tile_size=base.tile_size,
        gsd=base.gsd,
        groups=base.groups,
        statistics=tally.statistics(base.statistics),
        legend=dict(sorted((base.legend | added.legend).items())),
        report=report,
    )
    return IngestReport(output_uri, manifest.tiles, manifest.fingerprint, False, report)


def _check_settings(base: Manifest, uri: str, tile_size: int, config: IngestConfig) -> None:
    if tile_size != base.tile_size:
        raise UsageError(
            f"cannot append tiles of {tile_size} px to {uri}: its tiles have {base.tile_size} px; "
            f"give --tile-size {base.tile_size}"
        )
    wanted = CODECS[config.codec]
    for group in base.groups:
        if group.codec != wanted:
            raise UsageError(
                f"cannot append cells of {wanted} to {uri}: {group.name} has {group.codec}; "
                f"give --set ingest.codec={group.codec.partition(':')[0]}"
            )


def _check_fits(base: Manifest, added: Manifest, uri: str) -> None:
    if added.gsd != base.gsd:
        raise UsageError(
            f"cannot append an archive of {added.gsd} m to {uri}, which has {base.gsd} m: "
            "make a dataset of its own"
        )
    have = {group.name: group for group in base.groups}
    for group in added.groups:
        if have.get(group.name) != group:
            held = have.get(group.name)
            there = f"bands {', '.join(held.bands)}" if held else "no such cells"
            raise UsageError(
                f"cannot append to {uri}: the archive has {group.name} of bands "
                f"{', '.join(group.bands)}, the dataset has {there}; choose --modalities, or make "
                "a dataset of its own"
            )
    for code, name in added.legend.items():
        if base.legend.get(code, name) != name:
            raise UsageError(
                f"cannot append to {uri}: land-cover code {code} is {name} in the archive and "
                f"{base.legend[code]} in the dataset"
            )
    if _has_nameless(base.legend) != _has_nameless(added.legend):
        raise UsageError(
            f"cannot append to {uri}: its land-cover codes {sorted(base.legend)} and the "
            f"archive's {sorted(added.legend)} are of two legends"
        )


def _has_nameless(legend: dict[int, str]) -> bool:
    return any(name == f"class {code}" for code, name in legend.items())


def _read_entries(uri: str, manifest: Manifest) -> list[ShardEntry]:
    """What ingest kept of each shard of a version."""

    def read(shard: StoredFile) -> ShardEntry:
        entry = ShardEntry.read(uri, _name(shard))
        if entry is None or entry.sha256 != shard.sha256 or "tally" not in entry.extra:
            raise UsageError(
                f"cannot append to {uri}: entries/{_name(shard)}.arrow, which ingest wrote, is "
                "missing or is not of this version"
            )
        return entry

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(read, manifest.shards))


def _name(shard: StoredFile) -> str:
    return shard.name.removeprefix("shards/").removesuffix(".parquet")


def _merged_report(
    base: Manifest, added: Dataset, taken: list[ShardEntry], adoption: Adoption
) -> dict[str, Any]:
    """The first ingest's report with all counts added up, and what was appended when.

    Shards that brought nothing new are counted already, by the ingest that brought their tiles.
    """
    new = dict(added.report)
    if not new.get("max_tiles"):
        # Thinned shards know their tiles alone, not what was left out on the way.
        tally = Tally()
        for entry in taken:
            tally.merge(Tally.from_json(entry.extra.get("tally"), entry.name))
        new |= tally.summary()
    report = dict(base.report)
    for name, counts in new.items():
        if name not in ("settings", "archive", "max_tiles"):
            report[name] = _add(report[name], counts) if name in report else counts
    if "selection" in report:
        report["selection"]["tiles"] = base.report["selection"]["tiles"] + adoption.fresh
    appended = {
        "version": base.version + 1,
        "tiles": adoption.fresh,
        "tiles_already_there": adoption.known,
        "settings": added.report.get("settings", {}),
        "archive": added.report.get("archive", {}),
    }
    return report | {"appended": [*base.report.get("appended", []), appended]}


def _add(one: Any, other: Any) -> Any:
    """Counts added up wherever they stand: in mappings, and in lists of what was decided."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: _add(one[key], other[key]) for key in one if key in other}
        return {**one, **other, **both}
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    if isinstance(one, list) and isinstance(other, list):
        totals: dict[str, int] = {}
        for entry in [*one, *other]:
            kind = json.dumps({k: v for k, v in entry.items() if k != "products"}, sort_keys=True)
            totals[kind] = totals.get(kind, 0) + entry["products"]
        return [json.loads(kind) | {"products": n} for kind, n in sorted(totals.items())]
    return one

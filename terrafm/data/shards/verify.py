"""Reads all of a dataset's version and holds it against manifest and index: nothing is repaired."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafm.data.shards.checking import Fault, check_shard, read_blocks
from terrafm.data.shards.index import Index, fingerprint, head_of
from terrafm.data.shards.manifest import (
    Manifest,
    StoredFile,
    list_versions,
    manifest_name,
    read_manifest,
)
from terrafm.errors import STORE_ERRORS, TerraFMError
from terrafm.storage import exists, join, read_bytes

# Reading and both checksums let other threads run: threads keep disk, network and cores busy.
_LEAST_THREADS = 4


def verify(
    uri: str,
    version: int | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Checks manifest, index, every shard's size and SHA-256, and every cell's CRC-32.

    Every shard is read once, in blocks; the rows that await their shard's turn are all that
    is held. That index and shard agree is checked in both directions: the same tiles, each
    cell where the index says.

    Args:
        uri: the dataset's folder.
        version: the newest by default.
        threads: shards read at once; by default the processor's cores, at least 4.
        progress: called with (shards done, shards in all).

    Returns:
        JSON-able: uri, version, fingerprint, versions (version, tiles, fingerprint of each),
        shards, tiles, bytes, and faults: shard, tile, cell and what is wrong, "" where a fault
        is of the whole shard or file.

    Raises:
        UsageError: there is no dataset, or no such version.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    manifest = read_manifest(uri, version)
    faults = list(_manifest_faults(uri, manifest))
    try:
        index = Index.open(uri, manifest.index, manifest.groups)
        faults += _index_faults(uri, manifest, index)
        for found in _check_shards(uri, manifest, index, threads, progress):
            faults += found
    except STORE_ERRORS:
        # Says nothing about the dataset.
        raise
    except TerraFMError as error:
        faults.append(Fault(manifest.index.name, "", "", str(error)))
    return {
        "uri": uri,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "versions": list(_describe_versions(uri, faults)),
        "shards": len(manifest.shards),
        "tiles": manifest.tiles,
        "bytes": manifest.bytes,
        "faults": [asdict(fault) for fault in sorted(faults)],
    }


def summary(result: dict[str, Any]) -> str:
    """One line on what `verify` found."""
    faults = result["faults"]
    where = f"version {result['version']} of {result['uri']}"
    size = f"{result['tiles']:,} tiles in {result['shards']:,} shards, {result['bytes']:,} bytes"
    if not faults:
        return f"{where} is whole: {size}"
    files = sorted({fault["shard"] for fault in faults})
    more = "" if len(files) == 1 else f" and {len(files) - 1} more"
    return (
        f"{where} has {len(faults)} faults, in {files[0]}{more}: restore these files from a copy, "
        "or ingest the archive again into another folder"
    )


def render(result: dict[str, Any]) -> RenderableType:
    """The result of `verify` for the terminal."""
    versions = ", ".join(
        f"{v['version']} ({v['tiles']:,} tiles, {v['fingerprint'][:12]})"
        for v in result["versions"]
    )
    lines = (summary(result), f"versions: {versions}")
    parts: list[RenderableType] = [Text(line, no_wrap=True, overflow="ignore") for line in lines]
    if result["faults"]:
        table = Table("file", "tile", "cell", "what is wrong")
        for fault in result["faults"]:
            table.add_row(fault["shard"], fault["tile"], fault["cell"], fault["why"])
        parts.append(table)
    return Group(*parts)


def _describe_versions(uri: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    for number in list_versions(uri):
        try:
            manifest = read_manifest(uri, number)
        except STORE_ERRORS:
            raise
        except TerraFMError as error:
            faults.append(Fault(manifest_name(number), "", "", str(error)))
            continue
        yield {
            "version": manifest.version,
            "tiles": manifest.tiles,
            "fingerprint": manifest.fingerprint,
        }


def _manifest_faults(uri: str, manifest: Manifest) -> Iterator[Fault]:
    own, newest = manifest_name(manifest.version), manifest_name()
    if not exists(join(uri, own)):
        yield Fault(own, "", "", "is missing: the version cannot be opened by its number")
    elif read_manifest(uri) == manifest and read_bytes(join(uri, own)) != read_bytes(
        join(uri, newest)
    ):
        yield Fault(own, "", "", f"differs from {newest}, which is a copy of it")
    if sum(shard.tiles for shard in manifest.shards) != manifest.tiles:
        yield Fault(own, "", "", "its shards' tiles do not add up to the dataset's")


def _index_faults(uri: str, manifest: Manifest, index: Index) -> Iterator[Fault]:
    name = manifest.index.name
    digest = hashlib.sha256()
    for block in read_blocks(join(uri, name), manifest.index.bytes):
        digest.update(block)
    if digest.hexdigest() != manifest.index.sha256:
        yield Fault(name, "", "", "does not match its SHA-256")
    statistics = {m: s.model_dump(mode="json") for m, s in manifest.statistics.items()}
    head = head_of(manifest.groups, manifest.tile_size, manifest.gsd, statistics, manifest.legend)
    if fingerprint(index, head) != manifest.fingerprint:
        yield Fault(name, "", "", "its content and the manifest's do not give the fingerprint")


def _check_shards(
    uri: str,
    manifest: Manifest,
    index: Index,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[Fault]]:
    width = threads or max(_LEAST_THREADS, os.cpu_count() or 1)
    done, total = 0, len(manifest.shards)
    running: set[Future[list[Fault]]] = set()
    with ThreadPoolExecutor(width) as pool:
        for shard, rows in _rows_by_shard(manifest, index):
            if shard is None:
                name = rows["shard"][0].as_py()
                yield [Fault(name, "", "", "is in the index, but not in the manifest")]
                continue
            running.add(pool.submit(check_shard, uri, shard, rows, manifest.groups))
            if len(running) >= 2 * width:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    done += 1
            if progress is not None:
                progress(done, total)
        for future in running:
            yield future.result()
            done += 1
            if progress is not None:
                progress(done, total)


def _rows_by_shard(
    manifest: Manifest, index: Index
) -> Iterator[tuple[StoredFile | None, pa.Table]]:
    """Each shard with its rows of the index, as soon as the last of them was read."""
    names = ["tile_id", "shard"]
    for group in manifest.groups:
        names += [f"{group.name}.{part}" for part in ("offset", "length", "checksum")]
    waiting = {shard.name: (shard, list[pa.Table]()) for shard in manifest.shards}
    for chunk in index.chunks(names):
        for name in pc.unique(chunk["shard"]).to_pylist():
            rows = chunk.filter(pc.equal(chunk["shard"], name))
            if name not in waiting:
                yield None, rows
                continue
            shard, parts = waiting[name]
            parts.append(rows)
            if sum(part.num_rows for part in parts) == shard.tiles:
                del waiting[name]
                yield shard, pa.concat_tables(parts)
    empty = index.take([], names)
    for shard, parts in waiting.values():
        yield shard, pa.concat_tables([empty, *parts])

"""Datasets: made, looked at, checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from terrafm.api.arguments import (
    Names,
    Path,
    Progress,
    Settings,
    begin,
    config_of,
    names_of,
    shown,
    telling,
    uri_of,
)
from terrafm.modalities import SENTINEL
from terrafm.storage import check_no_file
from terrafm.terminal import Result

if TYPE_CHECKING:
    from terrafm.data.ingest.report import IngestReport


def ingest(
    source: str,
    input: Path,
    output: Path,
    *,
    worldcover: Path | None = None,
    legend: Path | None = None,
    climate: Path | None = None,
    tile_size: int = 534,
    modalities: Names = SENTINEL,
    grid: str | None = None,
    bbox: str | None = None,
    geometry: Path | None = None,
    time: str | None = None,
    sign: str | None = None,
    append: bool = False,
    set: Settings = None,
    progress: Progress = True,
) -> IngestReport:
    """Cuts an archive into tiles and packs them into Parquet shards: `terrafm ingest`.

    Given again, it goes on after any interruption.

    Args:
        source: layout of the archive, such as "geotiff", or "package.module:Class".
        input: the archive.
        output: folder of the dataset.
        worldcover: ESA WorldCover folder, for cells without land cover of their own; by default
            ESA's public bucket.
        legend: YAML that maps the codes of the archive's land cover.
        climate: raster of climate zones in EPSG:4326.
        tile_size: side of a tile on the finest grid, pixels.
        modalities: sensors to take.
        grid: cells of scenes: "mgrs", "major-tom" or "utm:PIXELS" of 10 m.
        bbox: of scenes: "WEST,SOUTH,EAST,NORTH" in degrees.
        geometry: of scenes: GeoJSON file of polygons in degrees.
        time: of scenes: "START/END", such as "2021-05-01/2021-09-30".
        sign: who signs addresses of STAC.
        append: add the tiles to the complete dataset in `output`.
        set: keys of the section `ingest`.
        progress: shown, or told, in cells.

    Returns:
        Number of tiles, fingerprint, and what was counted and decided.

    Raises:
        UsageError: something asked for cannot be; there is no dataset.
        TerraFMError: too many tiles are bad; the quarantine list is kept.
    """
    begin()
    config = config_of(None, set)
    with shown(progress, "cells", f"reading {input} into {output}") as advance:
        from terrafm.data.ingest.append import append as run_append
        from terrafm.data.ingest.job import ingest as run_ingest
        from terrafm.data.sources.scenes.request import SceneWords

        run: Any = run_append if append else run_ingest
        report: IngestReport = run(
            source,
            os.fspath(input),
            os.fspath(output),
            worldcover=uri_of(worldcover),
            legend_uri=uri_of(legend),
            climate=uri_of(climate),
            tile_size=tile_size,
            modalities=names_of(modalities) or (),
            scenes=SceneWords(grid, bbox, uri_of(geometry), time, sign),
            config=config.ingest,
            progress=advance,
        )
    return report


def inspect(uri: Path, *, set: Settings = None, progress: Progress = True) -> Result:
    """What a dataset holds and how it will be resampled: `terrafm inspect`.

    Args:
        uri: a dataset made by ingest.
        set: keys of the resampling, such as {"data.resample_exponent": 0.3}.
        progress: say what is being done.

    Returns:
        As `--json` prints it: tiles, classes before and after, statistics per band in physical
        units, decisions. `str()` of it is the verb's table.

    Raises:
        UsageError: no dataset there, or one that is not readable.
    """
    begin()
    config = config_of(None, set)
    with telling(progress, f"reading {uri}"):
        from terrafm.data.inspect import inspect as run_inspect
        from terrafm.data.inspect import render

        return Result(run_inspect(os.fspath(uri), config), render)


def verify(uri: Path, *, version: int | None = None, progress: Progress = True) -> Result:
    """Reads a whole dataset and compares it with its checksums: `terrafm verify`.

    Args:
        uri: a dataset made by ingest.
        version: the newest by default.
        progress: shown, or told, in shards.

    Returns:
        As `--json` prints it; "faults" is empty where all is well.

    Raises:
        UsageError: no dataset there, or no such version.
    """
    begin()
    with shown(progress, "shards", f"reading all of {uri}") as advance:
        from terrafm.data.shards.verify import render
        from terrafm.data.shards.verify import verify as run_verify

        return Result(run_verify(os.fspath(uri), version, progress=advance), render)


def tile(uri: Path, tile_id: str, output: Path, *, progress: Progress = True) -> tuple[str, ...]:
    """Writes one tile as GeoTIFFs, one for each sensor and pixel size: `terrafm tile`.

    Args:
        uri: a dataset made by ingest.
        tile_id: id of the tile.
        output: folder to write.
        progress: say what is being done.

    Returns:
        URIs of the files.

    Raises:
        UsageError: no such dataset or tile; names the nearest ids.
        TerraFMError: the tile is damaged.
    """
    begin()
    check_no_file(os.fspath(output))
    with telling(progress, f"reading {tile_id} of {uri}"):
        from terrafm.data.shards.tile_export import export_tile

        return tuple(export_tile(os.fspath(uri), tile_id, os.fspath(output)))

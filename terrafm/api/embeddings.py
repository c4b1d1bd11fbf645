"""Embeddings of an archive, and what looks alike among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from terrafm import early
from terrafm.api.arguments import (
    Names,
    Path,
    Progress,
    at_least,
    begin,
    choice_of,
    is_by_set,
    names_of,
    shown,
    telling,
    uri_of,
)
from terrafm.embed.choices import DenseFormat, Quantise
from terrafm.eval.features.readouts import Readout
from terrafm.storage import check_exists, check_no_file
from terrafm.terminal import Result

if TYPE_CHECKING:
    from terrafm.embed.job import EmbeddingReport


def embed(
    weights: Path,
    data: Path,
    output: Path,
    *,
    modality: Names = None,
    dense: bool = False,
    dense_format: str = "geotiff",
    quantise: str | None = None,
    size: int | None = None,
    window: int | None = None,
    overlap: int | None = None,
    bands: Names = None,
    readout: str = "cls",
    normalise: str = "weights",
    batch: int = 32,
    workers: int | None = None,
    device: str | None = None,
    progress: Progress = True,
) -> EmbeddingReport:
    """Embeds an archive as GeoParquet; given again, it goes on: `terrafm embed`.

    Args:
        weights: exported weights.
        data: a dataset of ingest, a folder of GeoTIFFs, or one of any size.
        output: folder to write; `OUTPUT/tiles/*.parquet` has one row per tile.
        modality: sensors to use, fused if they are several; by default one.
        dense: patch embeddings too.
        dense_format: how those are written: "geotiff", cloud-optimised, or "zarr".
        quantise: "int8" stores a byte for each number, a quarter of the space.
        size: side of the resized images, pixels; as trained by default.
        window: side of a GeoTIFF's windows, pixels; `size` by default.
        overlap: of neighbouring windows, pixels; a quarter of the window by default.
        bands: names of the GeoTIFFs' bands, in their order.
        readout: "cls", "mean" or "mean+std" of the patch tokens.
        normalise: by what the "weights" state, or by the data's own statistics ("set").
        batch: images at once.
        workers: Ray actors; one for each GPU or CPU by default. 0: this process, no Ray.
        device: "cpu" or "cuda"; by default a GPU where the cluster has any.
        progress: shown, or told, in tiles.

    Returns:
        URI and manifest: rows, length of an embedding, normalisation, parts.

    Raises:
        UsageError: weights or data cannot be read or do not fit each other.
        TerraFMError: a tile is damaged, or a store fails for too long; what is done stays.
    """
    begin()
    weights, data, output = os.fspath(weights), os.fspath(data), os.fspath(output)
    early.check_weights([weights])
    check_exists("data", data)
    check_no_file(output)
    at_least(size=(size, 16), window=(window, 1), overlap=(overlap, 0), batch=(batch, 1))
    at_least(workers=(workers, 0))
    small = None if quantise is None else choice_of(Quantise, quantise, "quantise")
    form = choice_of(DenseFormat, dense_format, "dense_format")
    chosen, by_set = choice_of(Readout, readout, "readout"), is_by_set(normalise)
    with shown(progress, "tiles", f"embedding {data} with {weights}") as advance:
        from terrafm.embed.job import embed as run_embed
        from terrafm.embed.request import EmbedOptions

        options = EmbedOptions(
            modalities=names_of(modality),
            size=size,
            batch=batch,
            window=window,
            overlap=overlap,
            bands=names_of(bands),
            readout=chosen,
            by_set=by_set,
            dense=dense,
            dense_format=form,
            quantise=small,
            workers=workers,
            device=device,
        )
        return run_embed(weights, data, output, options, progress=advance)


def search(
    embeddings: Path,
    *,
    tile: str | None = None,
    point: tuple[float, float] | None = None,
    k: int = 16,
    output: Path | None = None,
    data: Path | None = None,
    index: bool | None = None,
    progress: Progress = True,
) -> Result:
    """The tiles that are most similar to one: `terrafm search`.

    Args:
        embeddings: what `embed` wrote.
        tile: id of the tile, or
        point: (longitude, latitude) in degrees of the tile.
        k: number of neighbours.
        output: PNG of a contact sheet to draw; none by default.
        data: the pixels, where they no longer lie where they did.
        index: look through the folder's index, built once and kept there; False looks at all
            embeddings. By default an index that is there is used.
        progress: say what is being done.

    Returns:
        As `--json` prints it: "query" and "neighbours" with similarity (cosine), distance in km,
        place and time.

    Raises:
        UsageError: no embeddings there, no such tile or place, or no pixels for the sheet.
    """
    begin()
    built = index is True and _build_index(embeddings, progress)
    with telling(progress, f"searching {embeddings}"):
        from terrafm.search.similar import find_similar, render

        result = Result(find_similar(embeddings, tile, point, k, index), render)
        if built:
            result["index"]["built"] = True
        result["contact_sheet"] = uri_of(output)
        if output is not None:
            draw_found(embeddings, result, os.fspath(output), uri_of(data))
    return result


def _build_index(embeddings: Path, progress: Progress) -> bool:
    """Builds the index of a folder where it has none that fits; says whether it did."""
    from terrafm.search.embeddings import Embeddings
    from terrafm.search.similar import needs_index

    folder = Embeddings(embeddings)
    if not needs_index(folder):
        return False
    doing = f"building an index of {len(folder):,} embeddings in {folder.uri}"
    with shown(progress, "embeddings", doing) as advance:
        from terrafm.search.index_build import build_index

        build_index(folder, advance)
    return True


def draw_found(embeddings: Path, result: dict[str, Any], output: str, data: str | None) -> None:
    """Draws the contact sheet of what `search` has found.

    Args:
        embeddings: what was searched.
        result: of `search`.
        output: URI of the PNG.
        data: URI of the pixels, where they no longer lie where they did.

    Raises:
        TerraFMError: the pixels cannot be read.
        OSError: the sheet cannot be written.
    """
    from terrafm.embed.schema import read_manifest
    from terrafm.search.contact_sheet import draw_contact_sheet
    from terrafm.search.previews import open_previews

    manifest = read_manifest(embeddings)
    previews = open_previews(manifest, data, [result["query"], *result["neighbours"]])
    draw_contact_sheet(result, previews, output)

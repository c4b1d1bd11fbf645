"""The job: the plan's parts that are not done yet, then the manifest.

Exactly once: a part is a range of the plan, its file's name is a function of that range, and the
file is put in its place whole. However often a part is done, by whomever, there is one file of it
with each of its rows once. Ray Data's own checkpoints keep ids of written rows beside files with
random names: a writer that outlives a killed driver can add a file that nobody knows of. Names
that are known beforehand need no such bookkeeping.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rich.text import Text

import terrafm
from terrafm.embed.dense import BLOCKS, OpenMosaicWork
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.packing import (
    OpenPacking,
    Packed,
    parts_per_file,
    quantisation_of,
    scales_over,
)
from terrafm.embed.quantisation import LEAST_COSINE, Scales
from terrafm.embed.request import EmbedOptions, Request, begin, make_request
from terrafm.embed.schema import DENSE, MANIFEST, PARTS, TILES, EmbeddingManifest, part_name
from terrafm.embed.stac import Extent, write_catalogue, write_dense_collection
from terrafm.embed.work import ENTRIES, Entry, OpenPartWork, dense_style
from terrafm.errors import TerraFMError
from terrafm.eval.features.readouts import Readout
from terrafm.ray.parts import Part, divide, run_parts
from terrafm.storage import (
    absolute,
    ensure_writable,
    join,
    list_names,
    remove_empty,
    remove_files,
    write_bytes,
)
from terrafm.storage.lease import lease
from terrafm.terminal import InNotebooks
from terrafm.units import counted

# Files of a part, and those of a writer that was killed: nothing else is cleared away.
_PART = re.compile(r"part-\d{5}\.\w+|\.part-\d{5}\.\w+\.[0-9a-f]{32}")
_THREADS = 16
_LIBRARIES = ("torch", "timm", "numpy", "ray", "pyarrow", "rasterio")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EmbeddingReport(InNotebooks):
    """What an embedding did.

    Attributes:
        uri: the folder.
        manifest: what it holds.
        already_complete: nothing had to be done.
        resumed: rows that an earlier command had finished.
        notes: what a reader of the result should know.
    """

    uri: str
    manifest: EmbeddingManifest
    already_complete: bool
    resumed: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.manifest
        return {
            "output": self.uri,
            "rows": found.rows,
            "dim": found.dim,
            "model": found.model,
            "modalities": list(found.modalities),
            "readout": found.readout.value,
            "data_type": found.data_type,
            "least_cosine": found.quantisation and found.quantisation.least_cosine,
            "files": len(found.parts),
            "skipped": found.skipped,
            "already_complete": self.already_complete,
            "resumed_rows": self.resumed,
            "notes": list(self.notes),
        }

    def render(self) -> Text:
        """One paragraph for the terminal."""
        found = self.manifest
        if self.already_complete:
            text = Text(f"nothing to do: {self.uri} holds these {found.rows:,} embeddings already")
        else:
            text = Text(f"{found.rows:,} embeddings of length {found.dim}, {found.model}")
            text.append(f", of {', '.join(found.modalities)}")
            if found.readout is not Readout.CLS:
                text.append(f", readout {found.readout.value}")
            if self.resumed:
                text.append(f"; {self.resumed:,} rows were there from before")
            text.append(f"\n{join(self.uri, TILES)}/*.parquet, {counted(len(found.parts), 'file')}")
            if found.quantisation is not None:
                cost = found.quantisation
                text.append(
                    f"\nint8: cosine to float32 {_cut(cost.mean_cosine)} on average, "
                    f"{_cut(cost.least_cosine)} at least",
                    style="yellow" if cost.least_cosine < LEAST_COSINE else "",
                )
            if found.options["dense"]:
                kind = {"zarr": "Zarr"}.get(found.options.get("dense_format", ""), "GeoTIFFs")
                text.append(f"\n{join(self.uri, DENSE)}/: patch embeddings as {kind}")
        if found.skipped:
            text.append(
                f"\n{found.skipped:,} without a pixel of {', '.join(found.modalities)}: no row",
                style="yellow",
            )
        for note in self.notes:
            text.append(f"\n{note}", style="yellow")
        return text


def embed(
    weights: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> EmbeddingReport:
    """Embeds a dataset of ingest, or GeoTIFFs; the same call goes on after any interruption.

    Args:
        weights: URI of exported or released weights.
        data: URI of a dataset, of a folder of GeoTIFFs, or of one.
        output: URI of the folder to write; `terrafm.embed.schema` says what lies in it.
        options: how.
        progress: called with (rows done, rows in all) as the work proceeds.

    Raises:
        UsageError: weights or data cannot be read or do not fit each other, or the output holds
            something else, or has another writer.
        TerraFMError: a tile is damaged, or a store fails for too long; what is done stays.
    """
    options = options or EmbedOptions()
    uri = absolute(output)
    with lease(uri, "terrafm embed"):
        return _embed(uri, make_request(weights, data, options), options, progress)


def _embed(
    uri: str, request: Request, options: EmbedOptions, progress: Progress | None
) -> EmbeddingReport:
    held = begin(uri, request)
    if held is not None:
        _remove_scaffold(uri)
        return EmbeddingReport(uri, held, True, held.rows, request.notes)
    ensure_writable(uri)
    total = len(request.source)
    parts = divide(total, request.rows_per_part)
    entries = _finished(uri, parts)
    missing = [part for part in parts if part.number not in entries]
    resumed = done = total - sum(part.rows for part in missing)
    if progress is not None:
        progress(done, total)
    work = OpenPartWork(request, uri, options.batch)
    for part, entry in run_parts(work, missing, workers=options.workers, device=options.device):
        entries[part.number] = entry
        done += part.rows
        if progress is not None:
            progress(done, total)
    _make_mosaics(uri, request, options)
    manifest = _finish(uri, request, options, [entries[part.number] for part in parts])
    return EmbeddingReport(uri, manifest, False, resumed, request.notes)


def _finished(output: str, parts: Iterable[Part]) -> dict[int, Entry]:
    """Parts whose entry is there, and the file that it speaks of."""
    there = {name.removesuffix(".json") for name in list_names(join(output, ENTRIES))}
    numbers = [part.number for part in parts if part_name(part.number) in there]
    files = {*list_names(join(output, PARTS)), None}
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda number: Entry.read(output, part_name(number)), numbers)
        return {
            number: entry
            for number, entry in zip(numbers, found, strict=True)
            if entry is not None and (entry.file and entry.file.name) in files
        }


def _make_mosaics(output: str, request: Request, options: EmbedOptions) -> None:
    source = request.source
    if not request.dense or not isinstance(source, GeoTiffWindows):
        return
    style = dense_style(request, output)
    work = OpenMosaicWork(source, output, request.dim, request.rows_per_part, style)
    files = divide(len(source.files), 1)
    # No model, no GPU.
    for _ in run_parts(work, files, workers=options.workers, device="cpu"):
        continue


def _pack(
    output: str,
    request: Request,
    options: EmbedOptions,
    entries: list[Entry],
    scales: Scales | None,
) -> list[Packed]:
    """Puts the files together that are not there yet."""
    files = divide(len(entries), parts_per_file(request))
    there = set(list_names(join(output, TILES)))
    packed: dict[int, Packed | None] = {
        file.number: found
        for file in files
        if (found := Packed.read(output, file.number)) and found.file.name in there
    }
    work = OpenPacking(request, output, tuple(entry.file for entry in entries), scales)
    missing = [file for file in files if file.number not in packed]
    # A small folder is packed before Ray would have started.
    workers = 0 if len(missing) == 1 else options.workers
    for file, found in run_parts(work, missing, workers=workers, device="cpu"):
        packed[file.number] = found
    return [found for file in files if (found := packed[file.number]) is not None]


def _finish(
    output: str, request: Request, options: EmbedOptions, entries: list[Entry]
) -> EmbeddingManifest:
    skipped = sum(entry.skipped for entry in entries)
    if not any(entry.file for entry in entries):
        raise TerraFMError(
            f"none of the {skipped} images of {request.source.uri} has a pixel of "
            f"{', '.join(request.modalities)}: there is nothing to embed"
        )
    scales = scales_over(entries) if request.quantise else None
    packed = _pack(output, request, options, entries, scales)
    files = [found.file for found in packed]
    write_catalogue(output, request, scales, [(found.file, found.extent) for found in packed])
    if request.dense:
        whole = Extent.joined([found.extent for found in packed])
        write_dense_collection(output, request, whole)
    manifest = EmbeddingManifest(
        rows=sum(file.rows for file in files),
        skipped=skipped,
        dim=request.dim,
        readout=request.readout,
        model=request.model,
        weights=request.weights,
        model_fingerprint=request.model_fingerprint,
        data=request.source.uri,
        data_kind=request.source.kind,
        data_fingerprint=request.source.fingerprint,
        modalities=request.modalities,
        normalisation={"source": request.normalised_by, **request.normalisation},
        options=request.options,
        legend=request.source.legend,
        quantisation=None if scales is None else quantisation_of(scales, packed),
        parts=tuple(files),
        versions={"terrafm": terrafm.__version__, **{name: version(name) for name in _LIBRARIES}},
    )
    # What killed writers left halfway; readers ask for *.parquet and never saw it.
    known = {file.name for file in files}
    found = set(list_names(join(output, TILES)))
    remove_files(join(output, TILES), filter(_PART.fullmatch, found - known))
    write_bytes(join(output, MANIFEST), manifest.to_json().encode())
    _remove_scaffold(output)
    return manifest


def _cut(cosine: float) -> str:
    """In six digits, never rounded up to a 1 that it is not."""
    return f"{math.floor(cosine * 1e6) / 1e6:.6f}"


def _remove_scaffold(output: str) -> None:
    """What only an unfinished job needs; one killed right after its manifest left it behind."""
    for folder in (join(output, ENTRIES), join(output, BLOCKS), join(output, PARTS)):
        remove_files(folder, filter(_PART.fullmatch, list_names(folder)))
        remove_empty(folder)

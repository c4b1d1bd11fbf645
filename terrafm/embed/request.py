"""What an embedding is asked to be, whether it can be, and whether a folder already holds it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from terrafm.config.yaml_text import shortened
from terrafm.embed.choices import DenseFormat, Quantise, check_zarr
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.schema import JOB, MANIFEST, EmbeddingManifest, read_manifest
from terrafm.embed.source import DatasetTiles, TileSource
from terrafm.errors import UsageError
from terrafm.eval.datasets.compatibility import (
    check_normalisation,
    check_units,
    normalisation_for,
    one_choice,
)
from terrafm.eval.features.extraction import input_side
from terrafm.eval.features.readouts import Readout
from terrafm.models.weights import (
    infer_model_name,
    load_encoder,
    stac_item_of,
    state_fingerprint,
)
from terrafm.ray.parts import rows_per_part
from terrafm.storage import (
    absolute,
    check_exists,
    exists,
    join,
    list_names,
    parse_record,
    read_bytes,
    to_json,
    write_bytes,
)
from terrafm.storage.lease_record import LEASE_FILE

# Raise it when the same encoder on the same pixels gives other numbers, or another order.
_VERSION = 3
# A worker holds a part's patches: 0.6 MB each of terrafm_base.
_DENSE_ROWS = 128
# Images whose statistics are held against the weights', where the data states none.
_SAMPLED = 8


class _Job(TypedDict):
    """What job.json must say."""

    depends_on: dict[str, Any]


@dataclass(frozen=True)
class EmbedOptions:
    """How an archive is embedded.

    Attributes:
        modalities: those to use, fused if they are several; by default one, L2A before L1C before
            radar.
        size: side to which tiles and windows are resized, pixels; as the weights were trained by
            default.
        batch: images at once.
        window: side of a GeoTIFF's windows, its pixels; by default `size`.
        overlap: of neighbouring windows, pixels; by default a quarter of the window.
        bands: names of the GeoTIFFs' bands, in their order.
        readout: which numbers of the encoder are an embedding.
        by_set: normalise by the data's own statistics, not by those that weights state.
        dense: write patch embeddings as well.
        dense_format: how those are written.
        quantise: store numbers in less than float32.
        workers: actors; by default one for each GPU or CPU. 0 works in this process.
        device: "cpu" or "cuda"; by default a GPU where the cluster has any.
    """

    modalities: Sequence[str] | None = None
    size: int | None = None
    batch: int = 32
    window: int | None = None
    overlap: int | None = None
    bands: Sequence[str] | None = None
    readout: Readout = Readout.CLS
    by_set: bool = False
    dense: bool = False
    dense_format: DenseFormat = DenseFormat.GEOTIFF
    quantise: Quantise | None = None
    workers: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Request:
    """An embedding that can be made: weights and data are there and fit each other.

    Attributes:
        weights: URI.
        model_item: URI of the STAC item beside the weights, where one lies there.
        model: name of its architecture.
        dim: length of an embedding.
        readout: which numbers of the encoder an embedding is.
        model_fingerprint: of its parameters.
        source: the data.
        modalities: those used.
        normalisation: modality -> {"mean", "std"}.
        normalised_by: where those come from.
        size: side of the model's input, pixels.
        dense: patch embeddings as well.
        dense_format: how those are written.
        quantise: store numbers in less than float32.
        notes: what a reader of the result should know.
    """

    weights: str
    model_item: str | None
    model: str
    dim: int
    readout: Readout
    model_fingerprint: str
    source: TileSource
    modalities: tuple[str, ...]
    normalisation: dict[str, dict[str, Any]]
    normalised_by: str
    size: int
    dense: bool
    dense_format: DenseFormat
    quantise: Quantise | None
    notes: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen, JSON-able; of GeoTIFFs the windows too."""
        dense = {"dense_format": self.dense_format.value} if self.dense else {}
        return {"size": self.size, "dense": self.dense, **dense, **self.source.options}

    @property
    def rows_per_part(self) -> int:
        """Rows of a part of the plan, and of its file."""
        rows = rows_per_part(len(self.source))
        return min(rows, _DENSE_ROWS) if self.dense else rows

    def tags(self) -> dict[str, str]:
        """What a GeoTIFF of patch embeddings says of itself."""
        return {
            "MODEL": self.model,
            "MODEL_FINGERPRINT": self.model_fingerprint,
            "DATA_FINGERPRINT": self.source.fingerprint,
            "MODALITIES": ",".join(self.modalities),
        }

    def depends_on(self) -> dict[str, Any]:
        """All that the rows depend on, JSON-able."""
        return {
            "version": _VERSION,
            "model": self.model_fingerprint,
            "readout": self.readout.value,
            "data": self.source.fingerprint,
            "rows_per_part": self.rows_per_part,
            "modalities": list(self.modalities),
            "normalisation": self.normalisation,
            "quantise": self.quantise and self.quantise.value,
            **self.options,
        }


def make_request(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], options: EmbedOptions
) -> Request:
    """Opens weights and data, and checks that they fit.

    Raises:
        UsageError: one of them cannot be read, or they do not fit.
    """
    if options.dense_format is DenseFormat.ZARR:
        if not options.dense:
            raise UsageError("--dense-format zarr says how --dense is written: add --dense")
        check_zarr()
    # Workers may run in other folders than this process.
    uri, data = absolute(weights), absolute(data)
    encoder = load_encoder(uri)
    size = input_side(encoder, options.size)
    source = open_source(data, options, size)
    modalities = one_choice(encoder, source, options.modalities)
    check_units(encoder, modalities, uri)
    notes: list[str] = []
    normalisation, by = normalisation_for(encoder, source, modalities, notes, by_set=options.by_set)
    stated = {
        name: {key: [float(v) for v in found[key]] for key in ("mean", "std")}
        for name, found in normalisation.items()
    }
    if encoder.contract is not None and not options.by_set:
        check_normalisation(stated, _measured(source), data)
    return Request(
        weights=uri,
        model_item=stac_item_of(uri),
        model=infer_model_name(encoder.state_dict(), uri),
        dim=options.readout.width(encoder),
        readout=options.readout,
        model_fingerprint=state_fingerprint(encoder),
        source=source,
        modalities=modalities,
        normalisation=stated,
        normalised_by=by,
        size=size,
        dense=options.dense,
        dense_format=options.dense_format,
        quantise=options.quantise,
        notes=tuple(notes),
    )


def open_source(data: str, options: EmbedOptions, size: int) -> TileSource:
    """Opens a dataset of ingest, recognised by its manifest or shards, else GeoTIFFs.

    Args:
        data: URI.
        options: of windows and bands.
        size: side of the model's input, pixels.

    Raises:
        UsageError: nothing is there that can be embedded.
    """
    check_exists("data", data)
    # An unfinished ingest has shards but no manifest: opening it says so.
    if not exists(join(data, "manifest.json")) and not exists(join(data, "shards")):
        if options.modalities and len(options.modalities) > 1:
            raise UsageError(
                f"GeoTIFFs are embedded one sensor at a time, not {', '.join(options.modalities)}: "
                "to fuse several, make a dataset with terrafm ingest"
            )
        return GeoTiffWindows(
            data,
            modality=options.modalities[0] if options.modalities else None,
            bands=options.bands,
            window=options.window,
            overlap=options.overlap,
            size=size,
            dense=options.dense,
        )
    given = {"--window": options.window, "--overlap": options.overlap, "--bands": options.bands}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is for GeoTIFFs, {data} is a dataset of tiles")
    return DatasetTiles(data)


def begin(output: str, request: Request) -> EmbeddingManifest | None:
    """Claims a folder for a request.

    Returns:
        The manifest where the folder holds all of it already, else None.

    Raises:
        UsageError: the folder holds something else.
    """
    asked = request.depends_on()
    if exists(join(output, JOB)):
        where, remedy = join(output, JOB), f"remove {output} or take another --output"
        stated = parse_record(read_bytes(where), _Job, where, remedy)["depends_on"]
        # Folders from before there was a choice hold CLS tokens.
        held = {"readout": Readout.CLS.value, **stated}
        # As JSON has them: tuples and lists are the same there.
        asked = json.loads(to_json(asked))
        for key in sorted({*held, *asked}):
            if held.get(key) != asked.get(key):
                raise UsageError(
                    f"{output} was begun with another {key}{_both(held.get(key), asked.get(key))}: "
                    "give the same command to go on, or take another --output"
                )
        return read_manifest(output) if exists(join(output, MANIFEST)) else None
    if [name for name in list_names(output) if name != LEASE_FILE]:
        raise UsageError(
            f"{output} is not empty and holds no embeddings: take another --output or empty it"
        )
    job = {
        "format": "terrafm-embedding-job",
        "weights": request.weights,
        "data_uri": request.source.uri,
        "depends_on": asked,
    }
    write_bytes(join(output, JOB), (to_json(job, indent=1) + "\n").encode())
    return None


def _both(held: Any, asked: Any) -> str:
    if isinstance(held, dict) or isinstance(asked, dict):
        return ""
    texts = [value[:12] if isinstance(value, str) else shortened(value) for value in (held, asked)]
    return f" ({texts[0]}, not {texts[1]})"


def _measured(source: TileSource) -> dict[str, dict[str, Any]]:
    if isinstance(source, GeoTiffWindows):
        return source.sampled_statistics(_SAMPLED)
    return source.statistics()

"""What `terrafm embed` writes, for those who read it: columns, manifest, names of files.

OUTPUT/tiles/part-00000.parquet, ...   GeoParquet 1.1, each file whole by itself
OUTPUT/dense/TILE_ID.tif               with --dense: patch embeddings, or .zarr
OUTPUT/dense/collection.json           their STAC collection; items in dense/items/
OUTPUT/collection.json                 the STAC collection
OUTPUT/items/part-00000.json, ...      its items, one for each Parquet file
OUTPUT/embedding.json                  the manifest, written last
OUTPUT/job.json                        what was asked for, written first

A folder without the manifest is an unfinished job.
"""

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terrafm.embed.quantisation import Quantisation
from terrafm.errors import UsageError
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import SENTINEL
from terrafm.storage import exists, join, parse_record, read_bytes, to_json

MANIFEST = "embedding.json"
JOB = "job.json"
COLLECTION = "collection.json"
ITEMS = "items"
TILES = "tiles"
PARTS = "parts"
"""Where rows wait until all are embedded."""
DENSE = "dense"
BBOX_SIDES = ("xmin", "ymin", "xmax", "ymax")
WINDOW_SIDES = ("column", "row", "width", "height")
TIME_PREFIX = "time_"
LARGEST_DIM = 65536
"""Length of an embedding: no encoder's is near it."""
_METADATA_KEY = b"geo"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartFile(_Part):
    """A file of rows with what proves that it is whole."""

    name: str
    rows: Annotated[int, Field(ge=0, lt=2**62)]
    bytes: Annotated[int, Field(ge=0, lt=2**62)]
    sha256: str


class EmbeddingManifest(_Part):
    """What a finished folder of embeddings says about itself.

    Attributes:
        rows: of all parts together.
        skipped: tiles or windows without a pixel of the modalities asked for: they have no row.
        dim: length D of an embedding.
        readout: which numbers of the encoder an embedding is; folders from before there was a
            choice hold CLS tokens.
        model: name of the architecture.
        weights: URI they were read from.
        model_fingerprint: SHA-256 over names and numbers of the encoder's parameters.
        data: URI of the dataset, the folder of GeoTIFFs, or the file.
        data_kind: "dataset" for one of `terrafm ingest`, else "geotiff".
        data_fingerprint: of a dataset its own; of GeoTIFFs that of names, sizes and times.
        modalities: those asked for; a row's own column says which of them it had.
        normalisation: where mean and std come from; and modality -> {"mean", "std"}.
        options: image size, windows and whatever else the numbers depend on.
        legend: land-cover code -> name.
        quantisation: what makes values of the numbers stored; None where they are float32.
        parts: in the order of the rows.
        versions: of the libraries that computed.
    """

    format: Literal["terrafm-embedding"] = "terrafm-embedding"
    format_version: Literal[1, 2] = 2
    rows: Annotated[int, Field(ge=0, lt=2**62)]
    skipped: Annotated[int, Field(ge=0, lt=2**62)]
    dim: Annotated[int, Field(ge=1, le=LARGEST_DIM)]
    readout: Readout = Readout.CLS
    model: str
    weights: str
    model_fingerprint: str
    data: str
    data_kind: Literal["dataset", "geotiff"]
    data_fingerprint: str
    modalities: tuple[str, ...]
    normalisation: dict[str, Any]
    options: dict[str, Any]
    legend: dict[int, str]
    quantisation: Quantisation | None = None
    parts: tuple[PartFile, ...]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if sum(part.rows for part in self.parts) != self.rows:
            raise ValueError(f"parts: their rows do not add up to {self.rows}")
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("parts: two have one name")
        if self.quantisation is not None and len(self.quantisation.scale) != self.dim:
            raise ValueError(f"quantisation: {len(self.quantisation.scale)} scales, not {self.dim}")
        return self

    @property
    def data_type(self) -> str:
        """Of the numbers stored."""
        return "float32" if self.quantisation is None else self.quantisation.data_type

    @property
    def needs_standardising(self) -> bool:
        """Whether each number is to be standardised over the rows before they are compared.

        Means and deviations differ in scale: the larger ones alone would decide a cosine.
        """
        return self.readout is Readout.MEAN_STD

    def to_json(self) -> str:
        """The text of `embedding.json`."""
        return to_json(self.model_dump(mode="json"), indent=1) + "\n"


def embedding_schema(
    dim: int, modalities: Sequence[str] = (), data_type: str = "float32"
) -> pa.Schema:
    """Columns of a part, without the metadata that make it GeoParquet.

    Args:
        dim: length D of an embedding.
        modalities: those asked for. The paper's three have a column of times anyhow, sensors of
            other packages only where they stand here.
        data_type: of the embeddings' numbers, "float32" or "int8".
    """
    numbers = {"float32": pa.float32(), "int8": pa.int8()}[data_type]
    timed = dict.fromkeys((*SENTINEL, *modalities))
    box = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in BBOX_SIDES])
    window = pa.struct([pa.field(side, pa.int32(), nullable=False) for side in WINDOW_SIDES])
    return pa.schema(
        [
            pa.field("tile_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(numbers, dim), nullable=False),
            pa.field("geometry", pa.binary(), nullable=False),
            pa.field("bbox", box, nullable=False),
            pa.field("modalities", pa.list_(pa.string()), nullable=False),
            *(pa.field(TIME_PREFIX + m, pa.timestamp("us", tz="UTC")) for m in timed),
            pa.field("land_cover", pa.int32()),
            pa.field("land_cover_name", pa.string()),
            pa.field("grid_cell", pa.string()),
            pa.field("crs", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("window", window),
            pa.field("model_fingerprint", pa.string(), nullable=False),
            pa.field("data_fingerprint", pa.string(), nullable=False),
        ]
    )


def geo_metadata(
    bounds: tuple[float, float, float, float] | None, types: list[str]
) -> dict[bytes, bytes]:
    """The metadata of a Parquet file that make it GeoParquet 1.1.

    No CRS is stated, which by the standard is OGC:CRS84: longitude, latitude, degrees.

    Args:
        bounds: west, south, east, north of all geometries; None where there are none.
        types: kinds of geometry that occur, such as ["Polygon"].
    """
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": types,
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in BBOX_SIDES}},
    }
    if bounds is not None:
        column["bbox"] = list(bounds)
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {_METADATA_KEY: to_json(geo).encode()}


def part_name(number: int) -> str:
    """Name of a part without suffix: a function of the plan, so that a repeat replaces it."""
    return f"part-{number:05d}"


def read_manifest(uri: str | os.PathLike[str]) -> EmbeddingManifest:
    """The manifest of a finished folder of embeddings.

    Raises:
        UsageError: there is no such folder, its job is unfinished, or the manifest is broken.
    """
    where = join(uri, MANIFEST)
    try:
        content = read_bytes(where)
    except (FileNotFoundError, NotADirectoryError):
        if exists(join(uri, JOB)):
            raise UsageError(
                f"embeddings {os.fspath(uri)} are unfinished: give the same terrafm embed again"
            ) from None
        raise UsageError(
            f"{os.fspath(uri)} holds no embeddings: there is no {MANIFEST}; terrafm embed makes it"
        ) from None
    return parse_record(content, EmbeddingManifest, where, "restore it or embed again")


def part_uris(uri: str | os.PathLike[str], manifest: EmbeddingManifest) -> list[str]:
    """URIs of the Parquet files of a finished folder, in the order of the rows."""
    return [join(uri, TILES, part.name) for part in manifest.parts]

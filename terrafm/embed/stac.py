"""What a catalogue knows of embeddings: STAC with the extension Embedding, as JSON.

A collection for the folder and an item for each Parquet file, version 1.0.0 of STAC, which is what
the extension (0.0.1, a proposal) builds on: https://github.com/geo-embeddings/
embeddings-stac-specification. The footer of each file says the same under the key `emb`.

Patch embeddings are a collection of their own in `dense/`, of the type "pixel", with an item for
each raster that the worker writes after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import shapely.geometry

import terrafm
from terrafm.embed.choices import DenseFormat
from terrafm.embed.quantisation import Scales
from terrafm.embed.request import Request
from terrafm.embed.rows import footprint
from terrafm.embed.schema import (
    BBOX_SIDES,
    COLLECTION,
    DENSE,
    ITEMS,
    TILES,
    TIME_PREFIX,
    PartFile,
)
from terrafm.embed.source import Place
from terrafm.storage import is_local, join, resolve, to_json, write_bytes
from terrafm.storage.records import Finite

EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_ITEM_ASSETS = "https://stac-extensions.github.io/item-assets/v1.0.0/schema.json"
_VERSION = "1.0.0"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_PARQUET = "application/vnd.apache.parquet"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_ZARR = "application/vnd+zarr; version=3"
_JSON, _GEOJSON = "application/json", "application/geo+json"


@dataclass(frozen=True)
class Extent:
    """What rows cover.

    Attributes:
        bounds: west, south, east, north, degrees.
        start: first acquisition, ISO 8601; None where none is known.
        stop: last acquisition.
    """

    bounds: tuple[Finite, Finite, Finite, Finite]
    start: str | None
    stop: str | None

    @classmethod
    def of(cls, table: pa.Table) -> "Extent":
        """Of the rows of a file."""
        box = table["bbox"].combine_chunks()
        sides = {side: pc.min_max(pc.struct_field(box, side)) for side in BBOX_SIDES}
        west, south, east, north = (
            sides[side]["min" if side.endswith("min") else "max"].as_py() for side in BBOX_SIDES
        )
        times = [
            found.as_py()
            for name in table.column_names
            if name.startswith(TIME_PREFIX)
            for found in pc.min_max(table[name]).values()
            if found.is_valid
        ]
        start, stop = (_iso(min(times)), _iso(max(times))) if times else (None, None)
        return cls((west, south, east, north), start, stop)

    @classmethod
    def joined(cls, extents: list["Extent"]) -> "Extent":
        """Of several together."""
        wests, souths, easts, norths = zip(*(found.bounds for found in extents), strict=True)
        starts = [found.start for found in extents if found.start]
        stops = [found.stop for found in extents if found.stop]
        return cls(
            (min(wests), min(souths), max(easts), max(norths)),
            min(starts, default=None),
            max(stops, default=None),
        )


@dataclass(frozen=True)
class RasterItems:
    """Writes the item of each raster of patch embeddings; travels to workers.

    Attributes:
        collection: id of their collection.
        modalities: that were used.
        media_type: of the rasters.
        properties: what all have in common.
        links: to the model and to the data.
    """

    collection: str
    modalities: tuple[str, ...]
    media_type: str
    properties: dict[str, Any]
    links: list[dict[str, str]]

    @classmethod
    def of(cls, output: str, request: Request) -> "RasterItems":
        """For the rasters of a folder."""
        media_type = _ZARR if request.dense_format is DenseFormat.ZARR else _COG
        properties = _properties(request, None)
        links = _sources(request)
        return cls(_dense_name(output), request.modalities, media_type, properties, links)

    def write(self, output: str, name: str, href: str, raster: Any, found: "RasterFacts") -> None:
        """Writes an item.

        Args:
            output: URI of the folder.
            name: of the raster, which may stand in a subfolder.
            href: its URI.
            raster: open.
            found: what the raster does not say of itself.
        """
        uri = join(output, DENSE, ITEMS, f"{name}.json")
        up = "../" * (1 + name.count("/"))
        outline = footprint(
            Place(name, raster.crs.to_wkt(), tuple(raster.transform)[:6], raster.shape, href)
        )
        now = _iso(datetime.now(UTC))
        code = raster.crs.to_authority()
        place = {"proj:code": ":".join(code)} if code else {"proj:wkt2": raster.crs.to_wkt()}
        gsd = {"gsd": abs(raster.transform.a)} if raster.crs.is_projected else {}
        item = {
            "type": "Feature",
            "stac_version": _VERSION,
            "stac_extensions": [EXTENSION, _PROCESSING, _PROJECTION],
            "id": name.replace("/", "_"),
            "collection": self.collection,
            "geometry": shapely.geometry.mapping(outline),
            "bbox": list(outline.bounds),
            "properties": {
                **_times([found.times[m] for m in self.modalities if m in found.times], now),
                **gsd,
                "processing:datetime": now,
                **self.properties,
                **({} if found.scales is None else _quantised(found.scales)),
                **place,
                "proj:shape": list(raster.shape),
                "proj:transform": list(raster.transform)[:6],
            },
            "links": [
                {"rel": rel, "href": f"{up}{COLLECTION}", "type": _JSON}
                for rel in ("root", "parent", "collection")
            ]
            + self.links,
            "assets": {
                "embeddings": {
                    "href": f"{up}{href.rpartition(f'/{DENSE}/')[2]}",
                    "type": self.media_type,
                    "roles": ["data"],
                    "title": f"Patch embeddings, {raster.count} bands",
                }
            },
        }
        _write(uri, item)


@dataclass(frozen=True)
class RasterFacts:
    """What a raster of patch embeddings does not say of itself.

    Attributes:
        times: modality -> acquisition, where it is known.
        scales: of its numbers, where they are int8.
    """

    times: Mapping[str, datetime] = field(default_factory=dict)
    scales: Scales | None = None


def write_dense_collection(output: str, request: Request, extent: Extent) -> None:
    """Writes the collection of the patch embeddings of a folder, over the items that lie there.

    Args:
        output: URI of the folder.
        request: what was made.
        extent: of all tiles.
    """
    filesystem, path = resolve(join(output, DENSE, ITEMS))
    names = sorted(found.removeprefix(path).lstrip("/") for found in filesystem.find(path))
    about = f"of {', '.join(request.modalities)} by {request.model}"
    fields = {**_fields(request, None), "emb:type": "pixel"}
    # A pixel is a patch; how large it is on the ground each item says.
    fields.pop("emb:chip_layout")
    fields.pop("gsd", None)
    if request.quantise is not None:
        fields["data_type"] = "int8"
    collection = _collection_of(
        _dense_name(output),
        f"Patch embeddings {about}",
        f"{len(names):,} rasters of patch embeddings {about}, a band for each dimension.",
        fields,
        extent,
        [f"./{ITEMS}/{name}" for name in names],
        RasterItems.of(output, request).media_type,
        [*_sources(request), {"rel": "related", "href": f"../{COLLECTION}", "type": _JSON}],
    )
    _write(join(output, DENSE, COLLECTION), collection)


def header(request: Request, scales: Scales | None) -> str:
    """JSON of what the footer of a Parquet file says of its embeddings."""
    return to_json(
        {
            "stac_extensions": [EXTENSION, _PROCESSING],
            **_fields(request, scales),
            **_properties(request, scales),
            "links": _sources(request),
        }
    )


def write_catalogue(
    output: str, request: Request, scales: Scales | None, files: list[tuple[PartFile, Extent]]
) -> None:
    """Writes the collection of a folder and an item for each of its files."""
    name = _name(output)
    now = _iso(datetime.now(UTC))
    for file, extent in files:
        item = _item(name, request, scales, file, extent, now)
        _write(join(output, ITEMS, _item_name(file)), item)
    whole = Extent.joined([extent for _, extent in files])
    collection = _collection(name, request, scales, [file for file, _ in files], whole)
    _write(join(output, COLLECTION), collection)


def as_uri(path: str) -> str:
    """A path of this machine's disk as a URI; what is one already stays."""
    return Path(path).as_uri() if is_local(path) and path.startswith("/") else path


def _item(
    collection: str, request: Request, scales: Scales | None, file: PartFile, extent: Extent,
    now: str,
) -> dict[str, Any]:  # fmt: skip
    west, south, east, north = extent.bounds
    corners = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    # STAC wants a time; where no acquisition is known, that of the embedding is one.
    times: dict[str, Any] = {"datetime": now}
    if extent.start:
        times = {"datetime": None, "start_datetime": extent.start, "end_datetime": extent.stop}
    return {
        "type": "Feature",
        "stac_version": _VERSION,
        "stac_extensions": [EXTENSION, _PROCESSING],
        "id": f"{collection}-{file.name.removesuffix('.parquet')}",
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "bbox": list(extent.bounds),
        "properties": {**times, "processing:datetime": now, **_properties(request, scales)},
        "links": [
            {"rel": "root", "href": f"../{COLLECTION}", "type": _JSON},
            {"rel": "parent", "href": f"../{COLLECTION}", "type": _JSON},
            {"rel": "collection", "href": f"../{COLLECTION}", "type": _JSON},
            *_sources(request),
        ],
        "assets": {
            "embeddings": {
                "href": f"../{TILES}/{file.name}",
                "type": _PARQUET,
                "roles": ["data"],
                "title": f"{file.rows:,} embeddings",
            }
        },
    }


def _collection(
    name: str, request: Request, scales: Scales | None, files: list[PartFile], extent: Extent
) -> dict[str, Any]:
    about = f"of {', '.join(request.modalities)} by {request.model}, readout {request.readout}"
    dense = [{"rel": "related", "href": f"./{DENSE}/{COLLECTION}", "type": _JSON}]
    return _collection_of(
        name,
        f"Embeddings {about}",
        f"{sum(file.rows for file in files):,} embeddings {about}.",
        _fields(request, scales),
        extent,
        [f"./{ITEMS}/{_item_name(file)}" for file in files],
        _PARQUET,
        [*_sources(request), *(dense if request.dense else [])],
    )


def _collection_of(
    name: str, title: str, description: str, fields: dict[str, Any], extent: Extent,
    items: list[str], media_type: str, links: list[dict[str, str]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "type": "Collection",
        "stac_version": _VERSION,
        "stac_extensions": [EXTENSION, _ITEM_ASSETS],
        "id": name,
        "title": title,
        "description": description,
        # In STAC 1.0 the word for whatever has no identifier of SPDX: it is not known here.
        "license": "proprietary",
        "extent": {
            "spatial": {"bbox": [list(extent.bounds)]},
            "temporal": {"interval": [[extent.start, extent.stop]]},
        },
        **fields,
        "emb:fit_for_use": ["retrieval", "classification"],
        "links": [
            {"rel": "root", "href": f"./{COLLECTION}", "type": _JSON},
            *({"rel": "item", "href": href, "type": _GEOJSON} for href in items),
            *links,
        ],
        "item_assets": {
            "embeddings": {"type": media_type, "roles": ["data"], "title": "Embeddings"}
        },
        "summaries": {key: [fields[key]] for key in ("emb:type", "emb:dimensions", "data_type")},
    }


def _fields(request: Request, scales: Scales | None) -> dict[str, Any]:
    """Of a collection: what its embeddings are."""
    return {
        "emb:type": "chip",
        "emb:dimensions": request.dim,
        "data_type": "float32" if scales is None else scales.data_type,
        **({} if request.source.gsd is None else {"gsd": request.source.gsd}),
        "emb:chip_layout": request.source.chip_layout,
    }


def _properties(request: Request, scales: Scales | None) -> dict[str, Any]:
    """Of an item: how its embeddings were made."""
    found: dict[str, Any] = {
        "processing:software": {"terrafm": terrafm.__version__},
        "emb:runtime_parameters": {
            "model": request.model,
            "model_fingerprint": request.model_fingerprint,
            "readout": request.readout.value,
            "modalities": list(request.modalities),
            "size": request.size,
        },
        "emb:preprocessing": {
            "format": "terrafm-normalisation",
            "expression": {"source": request.normalised_by, **request.normalisation},
        },
    }
    return {**found, **({} if scales is None else _quantised(scales))}


def _quantised(scales: Scales) -> dict[str, Any]:
    return {
        "emb:quantization": {
            "method": scales.method,
            "original_dtype": "float32",
            "quantized_dtype": scales.data_type,
            "scale": list(scales.scale),
            "offset": list(scales.offset),
        }
    }


def _times(times: Sequence[datetime], now: str) -> dict[str, Any]:
    """STAC wants a time; where no acquisition is known, that of the embedding is one."""
    if not times:
        return {"datetime": now}
    return {
        "datetime": None,
        "start_datetime": _iso(min(times)),
        "end_datetime": _iso(max(times)),
    }


def _sources(request: Request) -> list[dict[str, str]]:
    model = {"rel": "emb:model", "href": as_uri(request.weights), "title": request.model}
    if request.model_item is not None:
        # What the extension asks for where there is one: a STAC item with the extension MLM.
        model |= {"href": as_uri(request.model_item), "type": _GEOJSON}
    return [
        model,
        {"rel": "emb:source-data", "href": as_uri(request.source.uri), "title": "source"},
    ]


def _item_name(file: PartFile) -> str:
    return f"{file.name.removesuffix('.parquet')}.json"


def _dense_name(output: str) -> str:
    return f"{_name(output)}-{DENSE}"


def _name(output: str) -> str:
    return output.rstrip("/").rpartition("/")[2] or "embeddings"


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(uri: str, document: dict[str, Any]) -> None:
    write_bytes(uri, (to_json(document, indent=1) + "\n").encode())

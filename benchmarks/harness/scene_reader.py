"""Reads the cells of scenes in one way, and prints how long it took.

    python benchmarks/harness/scene_reader.py '{"how": "terrafm", "address": ..., ...}'

Runs in the environment of odc-stac as well, which has nothing of this project: what is imported
at the top is rasterio and NumPy.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

# What manuals recommend for COGs on a server.
_TUNED = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "VSI_CACHE": "TRUE",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
}


def read_terrafm(request: dict[str, Any]) -> Iterator[Any]:
    """Pixels of every band of every cell, by the engine of `ingest`."""
    from terrafm.data.sources.scenes.request import SceneRequest
    from terrafm.data.sources.stac import StacItems

    words = SceneRequest(tile_size=request["tile"])
    source = StacItems(f"{request['address']}/items.json", ("s2_l2a",), words)
    for ref in source.cells():
        yield from source.read(ref).products["s2_l2a"].bands.values()


def read_rasterio(request: dict[str, Any]) -> Iterator[Any]:
    """A window of every band for every tile: a file is opened, read and closed."""
    tuned = _TUNED if request["how"] == "rasterio tuned" else {}
    with rasterio.Env(**tuned):
        for item in request["items"]:
            for row, column in request["tiles"]:
                for band, gsd in request["bands"].items():
                    yield _window(request, f"{item}/{band}.tif", gsd, row, column)


def read_rasterio_threads(request: dict[str, Any]) -> Iterator[Any]:
    """The same with the bands of a tile in threads."""
    bands = request["bands"]

    def read(entry: tuple[str, int, int, str]) -> Any:
        item, row, column, band = entry
        with rasterio.Env(**_TUNED):
            return _window(request, f"{item}/{band}.tif", bands[band], row, column)

    with ThreadPoolExecutor(len(bands)) as pool:
        for item in request["items"]:
            for row, column in request["tiles"]:
                yield from pool.map(read, [(item, row, column, band) for band in bands])


def _window(request: dict[str, Any], name: str, gsd: int, row: int, column: int) -> Any:
    side = request["tile"] * 10 // gsd
    with rasterio.open(f"{request['address']}/{name}") as file:
        return file.read(1, window=Window(column * side, row * side, side, side))


def read_odc(request: dict[str, Any]) -> Iterator[Any]:
    """The cells of the engine by odc-stac: a load for each resolution, threads as it offers."""
    import pystac
    from odc.geo.geobox import GeoBox
    from odc.stac import configure_rio, load

    configure_rio(cloud_defaults=True)
    items = [pystac.Item.from_dict(json.loads(text)) for text in request["stac"]]
    by_gsd: dict[int, list[str]] = {}
    for band, gsd in request["bands"].items():
        by_gsd.setdefault(gsd, []).append(band)
    for item in items:
        for left, top, rows, columns in request["cells"]:
            for gsd, bands in by_gsd.items():
                shape = rows * 10 // gsd, columns * 10 // gsd
                affine = rasterio.Affine(gsd, 0, left, 0, -gsd, top)
                found = load(
                    [item], bands, geobox=GeoBox(shape, affine, request["crs"]), chunks=None,
                    pool=request["threads"],
                )  # fmt: skip
                for band in bands:
                    yield found[band].values


def ingest_archive(request: dict[str, Any]) -> dict[str, float]:
    """Reads an archive by its source alone, then ingests it, in this process.

    Returns:
        Tiles, seconds of both, and bytes that reading took of files, or of a server.
    """
    import psutil

    from harness.range_server import ask
    from terrafm.config import IngestConfig
    from terrafm.data.ingest.job import ingest
    from terrafm.data.sources.registry import open_source, reads_scenes
    from terrafm.data.sources.scenes.request import SceneRequest

    name, uri, tile = request["source"], request["uri"], request["tile"]
    words = SceneRequest(tile_size=tile) if reads_scenes(name) else None
    process = psutil.Process()
    # Libraries that the first cell loads are no archive.
    warm = open_source(name, uri, ("s2_l2a",), "", words)
    warm.read(warm.cells()[0])

    def taken() -> int:
        if request["server"]:
            return ask(request["server"], "counts")["bytes"]
        return int(process.io_counters().read_chars)

    # A server counts anew after each question.
    before, start = taken(), time.perf_counter()
    source = open_source(name, uri, ("s2_l2a",), "", words)
    tiles = sum(np.prod(source.read(ref).shape) for ref in source.cells()) / tile**2
    reading = time.perf_counter() - start
    read = taken() - (0 if request["server"] else before)
    start = time.perf_counter()
    config = IngestConfig(workers=0, ocean_drop=0.0)
    report = ingest(name, uri, request["output"], tile_size=tile, config=config,
                    worldcover=request["worldcover"], modalities=("s2_l2a",))  # fmt: skip
    return {
        "tiles": float(tiles), "ingested": report.tiles, "reading": reading, "bytes": read,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


READERS = {
    "terrafm": read_terrafm,
    "rasterio": read_rasterio,
    "rasterio tuned": read_rasterio,
    "rasterio threads": read_rasterio_threads,
    "odc-stac": read_odc,
}


def main() -> None:
    """Prints seconds, those of the processor, and the sum of all pixels, which tells them apart."""
    request = json.loads(sys.argv[1])
    if request["how"] == "ingest":
        print(json.dumps(ingest_archive(request)), flush=True)
        return
    if request["how"] == "terrafm":
        # Libraries are loaded before the clock starts, as rasterio is.
        import_module("terrafm.data.sources.stac")
    elif request["how"] == "odc-stac":
        import_module("odc.stac")
    start, busy, total = time.perf_counter(), time.process_time(), 0
    for pixels in READERS[request["how"]](request):
        total += int(np.sum(pixels, dtype=np.int64))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(json.dumps({"seconds": seconds, "busy": busy, "sum": total}), flush=True)


if __name__ == "__main__":
    main()

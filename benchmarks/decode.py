"""Decoding a tile's cells against rasterio reading the same pixels from GeoTIFFs in memory.

    python benchmarks/decode.py [--json]

All bands of all modalities of a tile, one core, bytes in memory on both sides; the same tiles,
GeoTIFFs and codecs as `shard_size.py`. What rasterio reads is held against the pixels first. Bar:
at least 8 times as fast.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from common import Figure, alternate, median_ratio, note, parse, parser, report
from harness import codecs
from harness.pixels import GROUPS, Pixels, describe, profile, tiles
from harness.tiles import geotiffs
from rasterio.io import MemoryFile

from terrafm.data.shards.codec import checksum
from terrafm.modalities import MODALITIES

BAR = 8.0
Files = dict[str, dict[str, bytes]]
Cells = dict[str, bytes]


def read_geotiffs(tiles: list[Files], modalities: tuple[str, ...]) -> None:
    """Every band of some tiles through rasterio."""
    for tile in tiles:
        for modality in modalities:
            for content in tile[modality].values():
                with MemoryFile(content) as memory, memory.open() as file:
                    file.read(1)


def read_cells(
    tiles: list[Cells], codec: str, modalities: tuple[str, ...], checked: bool = False
) -> None:
    """Every cell of some tiles; `checked` as the reader does it, with its checksum."""
    for tile in tiles:
        for group in GROUPS:
            if group.modality in modalities:
                cell = tile[group.name]
                if checked:
                    checksum(cell)
                codecs.decode(codec, cell, group.shape, group.dtype)


def prove(files: Files, tile: Pixels, cells: dict[str, Cells]) -> None:
    """Both sides hold the pixels that they were made of."""
    for modality, bands in files.items():
        for band, content in bands.items():
            with MemoryFile(content) as memory, memory.open() as file:
                assert np.array_equal(file.read(1), tile.raw[modality][band]), (modality, band)
    for codec, encoded in cells.items():
        for group in GROUPS:
            pixels = codecs.decode(codec, encoded[group.name], group.shape, group.dtype)
            assert np.array_equal(pixels, tile.stored[group.name]), (codec, group.name)


def milliseconds(read: Callable[[], None], count: int) -> float:
    """Time per tile."""
    start = time.perf_counter()
    read()
    return 1000 * (time.perf_counter() - start) / count


def measure(real: Path, count: int, rounds: int) -> list[Figure]:
    """Median ratios, and the times behind them."""
    style = profile(real)
    files: list[Files] = []
    cells: dict[str, list[Cells]] = {codec: [] for codec in codecs.names()}
    for tile in tiles(real, count):
        files.append(geotiffs(tile, style))
        for codec, encoded in cells.items():
            encoded.append({g.name: codecs.encode(codec, tile.stored[g.name]) for g in GROUPS})
        prove(files[-1], tile, {codec: encoded[-1] for codec, encoded in cells.items()})
        note(f"tile {len(files)} of {count}")
    everything = tuple(MODALITIES)
    runs = {}
    for label, wanted in {"": everything, **{f" {m}": (m,) for m in MODALITIES}}.items():
        runs[f"rasterio{label}"] = partial(read_geotiffs, files, wanted)
        for codec, encoded in cells.items():
            runs[f"{codec}{label}"] = partial(read_cells, encoded, codec, wanted)
    for codec, encoded in cells.items():
        runs[f"{codec} checked"] = partial(read_cells, encoded, codec, everything, True)
    with rasterio.Env(GDAL_NUM_THREADS=1):
        for run in runs.values():
            run()
        timed = {name: partial(milliseconds, run, count) for name, run in runs.items()}
        results = alternate(timed, rounds)
    figures = []
    for codec in cells:
        ratio = median_ratio(results, "rasterio", codec)
        bar = BAR if codec == codecs.names()[0] else None
        figures.append(Figure(f"decode, {codec} against rasterio", ratio, bar, "higher", "x"))
        for modality in MODALITIES:
            ratio = median_ratio(results, f"rasterio {modality}", f"{codec} {modality}")
            name = f"decode, {codec} against rasterio, {modality}"
            figures.append(Figure(name, ratio, None, "higher", "x"))
        ratio = median_ratio(results, "rasterio", f"{codec} checked")
        name = f"decode and checksum, {codec} against rasterio"
        figures.append(Figure(name, ratio, None, "higher", "x"))
    for name in ("rasterio", *cells):
        value = float(np.median(results[name]))
        figures.append(Figure(f"decode a tile, {name}", value, None, "lower", "ms"))
    return figures


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=7)
    options.add_argument("--tiles", type=int, default=8, help="number of tiles (%(default)s)")
    arguments = parse(options)
    count = 1 if arguments.quick else arguments.tiles
    figures = measure(arguments.real, count, arguments.rounds)
    report(figures, arguments, describe(arguments.real))


if __name__ == "__main__":
    main()

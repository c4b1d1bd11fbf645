"""Tiles out of scenes: COGs on a server read by ranges, against rasterio and odc-stac.

    python benchmarks/scenes.py --peers-python /tmp/odc/bin/python [--json]

Scenes of Level-2A, twelve bands at 10, 20 and 60 m in deflated blocks of 512, lie behind a server
of this machine's loopback; every contestant reads all tiles of 534 px of all bands in one process
and sums their pixels, which must come to the same. Processor time is the reader's own, without the
server's: it says what is left on a machine that others use too.

- terrafm: the engine of `ingest --source stac`, listing included.
- rasterio: a plain loop that opens, reads a window and closes, tile by tile and band by band, with
  GDAL's defaults. Bar: 3 x.
- rasterio tuned: the same loop with the settings that manuals recommend for COGs.
- rasterio threads: that with the bands of a tile in as many threads.
- odc-stac: loads the engine's cells (2 x 2 tiles), a load for each resolution, --threads threads.
  It lives in an environment of its own, whose Python --peers-python names: `python -m venv
  /tmp/odc; /tmp/odc/bin/python -m pip install odc-stac==0.5.3 rasterio==1.4.4`.

Loopback has no latency, and a store is what one waits for: so all is measured without, and with
--latency milliseconds before every answer, on the first --waited tiles. Requests and bytes are the
server's count.

--sources measures another thing: one scene in every form that is read (SAFE, deflated zip, EOPF,
COGs behind the server, a GeoTIFF for each place, TerraMesh), one process: the whole `ingest`
without Ray, reading alone, and what was read.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from common import (
    BENCHMARKS,
    Figure,
    alternate,
    median_ratio,
    note,
    parse,
    parser,
    report,
    run_child,
)
from harness.pixels import TILE, describe
from harness.range_server import ask
from harness.scene_archives import SAMPLE, write_archives
from harness.scenes import BANDS, CORNER, EPSG, scene_name, write_scenes

Direction = Literal["higher", "lower"]
BAR = 3.0
SIDE = 10
PIXEL_BYTES = 2 * sum((TILE * 10 // gsd) ** 2 for gsd in BANDS.values())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of a folder in a process of its own, which ends with the block."""
    command = [sys.executable, str(BENCHMARKS / "harness" / "range_server.py"), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def request_of(
    address: str, items: list[dict[str, Any]], side: int, threads: int
) -> dict[str, Any]:
    """What all contestants are told."""
    whole = [
        {**item, "assets": {b: {**a, "href": f"{address}/{a['href']}"}
                            for b, a in item["assets"].items()}}
        for item in items
    ]  # fmt: skip
    step = 2 * TILE
    left, top = CORNER
    pixels = side * TILE
    return {
        "address": address,
        "tile": TILE,
        "bands": BANDS,
        "crs": f"EPSG:{EPSG}",
        "threads": threads,
        "items": [f"scene{n}" for n in range(len(items))],
        "tiles": [(row, column) for row in range(side) for column in range(side)],
        "cells": [
            (left + x * 10, top - y * 10, min(step, pixels - y), min(step, pixels - x))
            for y in range(0, pixels, step)
            for x in range(0, pixels, step)
        ],
        "stac": [json.dumps(item) for item in whole],
    }


class Race:
    """All contestants over the same scenes."""

    def __init__(self, folder: Path, items: list[dict[str, Any]], side: int,
                 arguments: argparse.Namespace) -> None:  # fmt: skip
        self.folder, self.items, self.side = folder, items, side
        self.arguments = arguments
        self.counts: dict[str, dict[str, int]] = {}
        self.busy: dict[str, list[float]] = {}
        self.sums: set[int] = set()

    @property
    def tiles(self) -> int:
        """Of all scenes."""
        return len(self.items) * self.side**2

    def run(self, names: list[str], latency: float) -> dict[str, list[float]]:
        """Tiles per second of each contestant, round by round."""
        with served(self.folder) as address:
            ask(address, f"latency/{latency:g}", "PUT")
            request = request_of(address, self.items, self.side, self.arguments.threads)
            once = {name: partial(self._once, address, request, name) for name in names}
            return alternate(once, self.arguments.rounds)

    def _once(self, address: str, request: Mapping[str, Any], name: str) -> float:
        ask(address, "counts")
        python = self.arguments.peers_python if name == "odc-stac" else sys.executable
        answer = run_child("scene_reader.py", {**request, "how": name}, python, timeout=3600)
        self.counts[name] = ask(address, "counts")
        self.busy.setdefault(name, []).append(answer["busy"] / self.tiles)
        self.sums.add(answer["sum"])
        if len(self.sums) > 1:
            raise SystemExit(f"{name} read other pixels: {self.sums}")
        return self.tiles / float(answer["seconds"])


def figures_of(race: Race, results: dict[str, list[float]], where: str, bar: float | None,
               ) -> list[Figure]:  # fmt: skip
    """Ratios, rates, and what the server saw."""
    found = [
        Figure(f"scenes, {where}: terrafm / {name}", median_ratio(results, "terrafm", name),
               bar if name == "rasterio" else None, "higher", "x")
        for name in results
        if name != "terrafm"
    ]  # fmt: skip

    def add(name: str, value: float, unit: str, better: Direction = "lower") -> None:
        found.append(Figure(name, value, None, better, unit))

    for name, rates in results.items():
        add(f"tiles per second, {where}, {name}", statistics.median(rates), "tiles/s", "higher")
        busy = 1000 * statistics.median(race.busy[name])
        add(f"processor time for a tile, {where}, {name}", busy, "ms")
        counts, tiles = race.counts[name], race.tiles
        add(f"requests for a tile, {where}, {name}", counts["requests"] / tiles, "")
        share = counts["bytes"] / tiles / PIXEL_BYTES
        add(f"bytes / pixel bytes, {where}, {name}", share, "x")
    rate = statistics.median(results["terrafm"])
    add(f"minutes for 1,000 tiles, {where}", 1000 / rate / 60, "min")
    return found


def by_source(arguments: argparse.Namespace) -> list[Figure]:
    """Minutes for 1,000 tiles and bytes of one, of every archive form of one scene."""
    side = 2 if arguments.quick else 6
    folder = arguments.work / f"forms-{describe(arguments.real).split()[0]}-{side}"
    note("one scene in every form")
    write_archives(folder, arguments.real, side)
    figures = []
    with served(folder / "stac") as address:
        forms = {name: (name, str(folder / name), 0.0) for name in ("safe", "eopf", "geotiff",
                                                                    "terramesh")}  # fmt: skip
        forms["safe, deflated zip"] = "safe", str(folder / "safe zip"), 0.0
        items = f"{address}/items.json"
        forms["stac, no latency"] = "stac", items, 0.0
        forms[f"stac, {arguments.latency:g} ms a request"] = "stac", items, arguments.latency
        for form, (source, uri, latency) in forms.items():
            ask(address, f"latency/{latency:g}", "PUT")
            tile = SAMPLE if source == "terramesh" else TILE
            found: dict[str, list[float]] = {"ingest": [], "reading": []}
            for _ in range(arguments.rounds):
                output = folder / "output"
                shutil.rmtree(output, ignore_errors=True)
                answer = run_child("scene_reader.py", {
                    "how": "ingest", "source": source, "uri": uri, "tile": tile,
                    "server": address if source == "stac" else "", "output": str(output),
                    "worldcover": str(folder / "worldcover"),
                }, timeout=3600)  # fmt: skip
                found["ingest"].append(answer["seconds"] / answer["ingested"] / 60)
                found["reading"].append(answer["reading"] / answer["tiles"] / 60)
                note(f"{form}: {answer}")
            size = answer["bytes"] / answer["tiles"]
            label = f"{form}, {tile} px"
            for what, values in found.items():
                value = 1000 * statistics.median(values)
                name = f"minutes for 1,000 tiles, {what}, {label}"
                figures.append(Figure(name, value, None, "lower", "min"))
            figures.append(Figure(f"MB read for a tile, {label}", size / 1e6, None, "lower", "MB"))
    return figures


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--peers-python", help="interpreter that has odc-stac")
    options.add_argument("--tiles", type=int, default=100, help="without latency (%(default)s)")
    options.add_argument("--waited", type=int, default=36, help="with latency (%(default)s)")
    options.add_argument("--latency", type=float, default=30, help="milliseconds (%(default)s)")
    options.add_argument("--threads", type=int, default=12, help="of odc-stac (%(default)s)")
    options.add_argument("--sources", action="store_true", help="every source instead")
    arguments = parse(options)
    if arguments.sources:
        report(by_source(arguments), arguments, describe(arguments.real))
        return
    if arguments.quick:
        arguments.tiles = arguments.waited = 4
    names = ["terrafm", "rasterio", "rasterio tuned", "rasterio threads"]
    names += ["odc-stac"] if arguments.peers_python else []
    figures = []
    for tiles, latency in ((arguments.tiles, 0.0), (arguments.waited, arguments.latency)):
        side = SIDE if tiles % SIDE**2 == 0 else max(2, int(tiles**0.5) // 2 * 2)
        count = max(1, tiles // side**2)
        folder = arguments.work / scene_name(arguments.real, count, side)
        note(f"{count} scenes of {side} x {side} tiles")
        items = write_scenes(folder, arguments.real, count, side)
        race = Race(folder, items, side, arguments)
        where = f"{latency:g} ms a request" if latency else "no latency"
        figures += figures_of(race, race.run(names, latency), where, BAR)
    report(figures, arguments, describe(arguments.real))


if __name__ == "__main__":
    main()

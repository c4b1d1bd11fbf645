"""Pixels of test tiles of 534 x 534 px, as Major-TOM publishes them and as shards hold them.

Real ones where the samples are at hand: Level-2A are windows of a Major-TOM cell; Level-1C and
radar are mosaics of 3 x 3 blocks of co-located places, every block of a tile another combination
of place, flip and turn. Level-1C bands of 20 and 60 m come back from the samples' 10 m grid,
onto which they were repeated, by taking one pixel of each. Synthetic ones otherwise.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terrafm.data.archive import Product
from terrafm.data.ingest.cutter import make_groups
from terrafm.data.rasters.units import OFFSET, Decision, to_storage
from terrafm.data.sources.offsets import decide
from terrafm.data.sources.registry import open_source
from terrafm.modalities import MODALITIES

TILE = 534
GSD = 10
GROUPS = make_groups({name: sensor.gsd for name, sensor in MODALITIES.items()}, GSD, TILE)
_BLOCK = TILE // 3
# A whole number of the coarsest pixels, so that a window's grids still meet.
_STEP = 6
_L1C_FILE_BANDS = (*MODALITIES["s2_l1c"].bands[:10], "B10", *MODALITIES["s2_l1c"].bands[10:])


@dataclass
class Pixels:
    """One tile.

    Attributes:
        raw: modality -> band -> (h, w) as published: uint16 digital numbers, float32 power.
        stored: cell group -> (bands, h, w) storage integers of the same pixels.
    """

    raw: dict[str, dict[str, NDArray[Any]]]
    stored: dict[str, NDArray[Any]] = field(default_factory=dict)

    def store(self, decisions: dict[str, Decision]) -> "Pixels":
        """Fills `stored` from `raw`."""
        for group in GROUPS:
            bands = [self.raw[group.modality][band] for band in group.bands]
            decision = decisions[group.modality]
            nodata = -32768 if group.modality == "s1" else None
            self.stored[group.name] = to_storage(np.stack(bands), group.modality, nodata, decision)
        return self


def tiles(real: Path, count: int) -> Iterator[Pixels]:
    """The same `count` tiles at every call, real where the samples are at hand."""
    yield from _real(real, count) if is_real(real) else _synthetic(count)


def is_real(real: Path) -> bool:
    """Whether the folder has the samples that tiles are made of."""
    return bool(_cell_files(real)) and len(_places(real)) >= 4


def describe(real: Path) -> str:
    """What the pixels are, for the machine line."""
    return "real pixels" if is_real(real) else "synthetic pixels"


def cell_bytes(real: Path) -> int:
    """Bytes of the real cell's own Level-2A files, which its four tiles cover."""
    return sum(path.stat().st_size for path in _cell_files(real).values())


def profile(real: Path) -> dict[str, Any]:
    """How Major-TOM writes a band, read off the real cell: compression, blocks, predictor."""
    files = _cell_files(real)
    if not files:
        return {"compress": "lzw", "tiled": True, "predictor": 1, "blockxsize": 1024}
    with rasterio.open(files["B02"]) as file:
        found = file.profile
        predictor = int(file.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR", 1))
    kept = {key: found[key] for key in ("compress", "tiled", "blockxsize")}
    return kept | {"predictor": predictor}


def _cell_files(real: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted(real.glob("major_tom/S2L2A/*/*/*/B*.tif"))}
    return found if set(MODALITIES["s2_l2a"].bands) <= set(found) else {}


def _places(real: Path) -> list[str]:
    return sorted(
        path.name
        for path in real.glob("colocated/S2L1C/*.tif")
        if (real / "colocated" / "S1RTC" / path.name).exists()
    )


def _real(real: Path, count: int) -> Iterator[Pixels]:
    cell = {}
    for band, path in _cell_files(real).items():
        with rasterio.open(path) as file:
            cell[band] = file.read(1)
    optical, radar = _colocated(real)
    decisions = {
        "s1": Decision(0, "radar", "linear"),
        "s2_l1c": Decision(OFFSET, "added here", "DN"),
        "s2_l2a": Decision(OFFSET, "baseline N0400", "DN"),
    }
    for number in range(count):
        generator = np.random.default_rng(number)
        chosen = _blocks(generator, len(optical))
        power = np.power(10.0, _mosaic(radar, chosen) / 10).astype(np.float32)
        digital = _mosaic(optical, chosen) + np.uint16(OFFSET)
        level_1c = MODALITIES["s2_l1c"]
        raw = {
            "s1": dict(zip(MODALITIES["s1"].bands, power, strict=True)),
            "s2_l1c": {
                band: np.ascontiguousarray(plane[:: gsd // GSD, :: gsd // GSD])
                for band, gsd, plane in zip(level_1c.bands, level_1c.gsd, digital, strict=True)
            },
            "s2_l2a": _window(cell, number, generator),
        }
        yield Pixels(raw).store(decisions)


def _window(
    cell: dict[str, NDArray[Any]], number: int, generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """A tile of the cell: its own four first, then flipped and turned windows anywhere."""
    sensor = MODALITIES["s2_l2a"]
    top, left, turns, flip = (number // 2) * TILE, (number % 2) * TILE, 0, False
    if number >= 4:
        side = cell["B02"].shape[0]
        top, left = (_STEP * generator.integers(0, (side - TILE) // _STEP + 1, 2)).tolist()
        turns, flip = int(generator.integers(4)), bool(generator.integers(2))
    planes = {}
    for band, gsd in zip(sensor.bands, sensor.gsd, strict=True):
        scale = gsd // GSD
        rows = np.s_[top // scale : (top + TILE) // scale]
        columns = np.s_[left // scale : (left + TILE) // scale]
        planes[band] = _orient(cell[band][rows, columns], turns, flip)
    return planes


def _colocated(real: Path) -> tuple[list[NDArray[np.uint16]], list[NDArray[np.float64]]]:
    """Per place: (12, 224, 224) Level-1C digital numbers without offset, (2, 224, 224) dB."""
    optical, radar = [], []
    for name in _places(real):
        with rasterio.open(real / "colocated" / "S2L1C" / name) as file:
            bands = dict(zip(_L1C_FILE_BANDS, file.read(), strict=True))
        cirrus = bands.pop("B10")
        gsd = dict.fromkeys(bands, GSD)
        decision = decide({"s2_l1c": Product("s2_l1c", bands, gsd, cirrus=cirrus)})["s2_l1c"]
        optical.append(to_storage(np.stack(list(bands.values())), "s2_l1c", None, decision))
        with rasterio.open(real / "colocated" / "S1RTC" / name) as file:
            radar.append(file.read())
    return optical, radar


def _blocks(generator: np.random.Generator, places: int) -> list[tuple[int, int, bool, int, int]]:
    """(place, turns, flip, top, left) of nine blocks, no two of the same place, turn and flip."""
    chosen = generator.permutation(places * 8)[:9]
    corners = _STEP * generator.integers(0, (224 - _BLOCK) // _STEP + 1, (9, 2))
    return [
        (int(c) // 8, int(c) % 4, bool(int(c) // 4 % 2), *corner)
        for c, corner in zip(chosen, corners.tolist(), strict=True)
    ]


def _mosaic(
    places: list[NDArray[Any]], chosen: list[tuple[int, int, bool, int, int]]
) -> NDArray[Any]:
    blocks = [
        _orient(places[place][:, top : top + _BLOCK, left : left + _BLOCK], turns, flip)
        for place, turns, flip, top, left in chosen
    ]
    rows = [np.concatenate(blocks[first : first + 3], axis=2) for first in (0, 3, 6)]
    return np.concatenate(rows, axis=1)


def _orient(image: NDArray[Any], turns: int, flip: bool) -> NDArray[Any]:
    turned = np.rot90(image, turns, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if flip else turned)


def _synthetic(count: int) -> Iterator[Pixels]:
    with tempfile.TemporaryDirectory() as folder:
        specification = f"synthetic:cells={2 * count},seed=0,px={TILE}"
        archive = open_source("synthetic", specification, tuple(MODALITIES), folder)
        made = 0
        for reference in archive.cells():
            cell = archive.read(reference)
            if made < count and set(cell.products) == set(MODALITIES):
                raw = {
                    name: {band: cell.products[name].bands[band] for band in sensor.bands}
                    for name, sensor in MODALITIES.items()
                }
                made += 1
                yield Pixels(raw).store(decide(cell.products))
        if made < count:
            raise SystemExit(f"{specification} has only {made} whole cells, not {count}")

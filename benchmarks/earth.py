"""How near the synthetic Earth is to a real one: the statistics of both, side by side.

    python benchmarks/earth.py [--synthetic ARCHIVE] [--json]

Level-1C and the VV of Sentinel-1 of the demo's archive beside cities of the Onera set, all as tiles
of 96 pixels at 10 m. What a network can learn from: levels and spreads of the bands, how much of
their variance lies between tiles, how far a pixel resembles its neighbours, how much of radar the
optical bands tell, and in how many directions the bands vary. Where no cities are at hand there is
nothing to lay beside, and that is said.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, note, parse, parser, report
from harness import cities
from numpy.typing import NDArray

from terrafm.demo import TRAINING_ARCHIVE
from terrafm.eval.features.extraction import batches
from terrafm.eval.retrieval.evaluate import open_tiles
from terrafm.modalities import MODALITIES

OPTICAL, RADAR = "s2_l1c", "s1"
LAGS = (1, 4, 16)
BLOCK = 8
"""Side of the means of which radar is told by optics, pixels: speckle tells nothing."""

_AS_IT_IS: dict[str, dict[str, Any]] = {
    name: {"mean": [0.0] * m.channels, "std": [1.0] * m.channels} for name, m in MODALITIES.items()
}
Pixels = NDArray[np.float64]


def main() -> None:
    """Ingests both, measures, prints."""
    arguments = parse(_options())
    real = arguments.real / "oscd"
    if not real.is_dir():
        raise SystemExit(f"no cities to lay beside: {real} does not exist (--real)")
    chosen = "?cities=paris,rennes" if arguments.quick else ""
    archive = "synthetic:cells=8,seed=0,px=264" if arguments.quick else arguments.synthetic
    sides = {
        "synthetic": _ingest(archive, arguments.work, "synthetic"),
        "real": _ingest(f"{real}{chosen}", arguments.work),
    }
    figures = []
    for side, uri in sides.items():
        pixels = _pixels(uri)
        note(f"{side}: {len(pixels[OPTICAL])} tiles")
        for name, value, unit in _statistics(pixels):
            figures.append(Figure(f"{name}, {side}", value, None, "higher", unit))
    # Pairs one under the other.
    order = {figure.name.rpartition(", ")[0]: at for at, figure in reversed([*enumerate(figures)])}
    figures.sort(key=lambda figure: order[figure.name.rpartition(", ")[0]])
    report(figures, arguments, "the demo's archive beside Onera cities")


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__, rounds=1)
    options.add_argument("--synthetic", default=TRAINING_ARCHIVE, help="(%(default)s)")
    return options


def _ingest(archive: str, work: Path, source: str = cities.CITIES) -> str:
    name = "".join(letter if letter.isalnum() else "-" for letter in archive)
    return cities.ingest(archive, work / "earth" / name, source)


def _pixels(uri: str) -> dict[str, NDArray[np.float32]]:
    """Sensor -> (N, C, 96, 96) of the tiles that have both, physical units, radar VV alone."""
    images = open_tiles(uri)
    rows = np.flatnonzero(images.available(OPTICAL) & images.available(RADAR)).tolist()
    found: dict[str, list[NDArray[np.float32]]] = {OPTICAL: [], RADAR: []}
    for _, pixels in batches(images, (OPTICAL, RADAR), _AS_IT_IS, cities.TILE, 64, rows):
        for name, parts in found.items():
            parts.append(pixels[name].numpy())
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    return {OPTICAL: whole[OPTICAL], RADAR: whole[RADAR][:, :1]}


def _statistics(pixels: dict[str, NDArray[np.float32]]) -> list[tuple[str, float, str]]:
    """Name, value and unit of each, bands in model order."""
    rows: list[tuple[str, float, str]] = []
    for sensor, title in ((OPTICAL, "L1C"), (RADAR, "VV")):
        tiles = pixels[sensor].astype(np.float64)
        bands = MODALITIES[sensor].bands if sensor == OPTICAL else ("",)
        unit = "" if sensor == OPTICAL else "dB"
        for at, band in enumerate(bands):
            name = f"{title} {band}".strip()
            rows.append((f"{name} mean", float(tiles[:, at].mean()), unit))
            rows.append((f"{name} standard deviation", float(tiles[:, at].std()), unit))
        means = tiles.mean((-2, -1))
        between = means.var(0) / tiles.var((0, -2, -1))
        rows.append((f"{title} share of variance between tiles", float(np.median(between)), ""))
        inside = tiles - means[..., None, None]
        for lag in LAGS:
            rows.append((f"{title} likeness of pixels {lag} apart", _likeness(inside, lag), ""))
    optical = pixels[OPTICAL].astype(np.float64)
    rows.append(("L1C directions, pixels within tiles", _directions(_inside(optical, 7)), ""))
    rows.append(("L1C directions, tiles' means", _directions(optical.mean((-2, -1))), ""))
    rows += _told(pixels)
    return rows


def _likeness(inside: Pixels, lag: int) -> float:
    """Correlation of pixels so far apart in a tile, mean over both axes, median over bands."""
    own = (inside**2).mean((0, -2, -1))
    across = (inside[..., lag:] * inside[..., :-lag]).mean((0, -2, -1))
    down = (inside[..., lag:, :] * inside[..., :-lag, :]).mean((0, -2, -1))
    return float(np.median((across + down) / 2 / own))


def _inside(tiles: Pixels, every: int = 1) -> Pixels:
    """(M, C) pixels, or every so many of them, less their tile's mean."""
    some = (tiles - tiles.mean((-2, -1), keepdims=True))[..., ::every, ::every]
    return some.transpose(0, 2, 3, 1).reshape(-1, tiles.shape[1])


def _directions(rows: Pixels) -> float:
    """Participation ratio of the eigenvalues of the bands' correlations: 1 to the bands' number."""
    values = np.linalg.eigvalsh(np.corrcoef(rows.T))
    return float(values.sum() ** 2 / (values**2).sum())


def _told(pixels: dict[str, NDArray[np.float32]]) -> list[tuple[str, float, str]]:
    """How much of the variance of VV a linear mix of the optical bands tells."""
    blocks = {name: _block_means(tiles.astype(np.float64)) for name, tiles in pixels.items()}
    means = {name: block.mean((-2, -1)) for name, block in blocks.items()}
    within = {name: _inside(block) for name, block in blocks.items()}
    return [
        ("VV told by L1C, blocks within tiles", _r2(within[OPTICAL], within[RADAR]), ""),
        ("VV told by L1C, tiles' means", _r2(means[OPTICAL], means[RADAR]), ""),
    ]


def _block_means(tiles: Pixels) -> Pixels:
    count, bands, height, width = tiles.shape
    parts = tiles.reshape(count, bands, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return np.asarray(parts.mean((3, 5)))


def _r2(inputs: Pixels, target: Pixels) -> float:
    """Adjusted for the number of bands."""
    x = np.column_stack([inputs, np.ones(len(inputs))])
    rest = target - x @ np.linalg.lstsq(x, target, rcond=None)[0]
    lost = rest.var() * len(x) / (len(x) - x.shape[1])
    return float(1 - lost / target.var())


if __name__ == "__main__":
    main()

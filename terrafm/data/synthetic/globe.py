"""Where cells lie: Major-TOM's grid, UTM footprints, MGRS names, and places for every biome.

Grid (Francis and Czerkawski 2024): rows of 180 / 2004 degrees from pole to pole, columns as near
10 km wide as divides the circle of latitude; a cell is named after its south-west corner and its
image is 1068 x 1068 pixels of 10 m, 340 m wider than the cell on every side.
"""

import math
from dataclasses import dataclass

import numpy as np
from pyproj import Transformer

from terrafm.data.synthetic.landscape import BIOMES

CELL = 10_000.0  # metres
_RADIUS = 6_378_137.0
ROWS = math.ceil(math.pi * _RADIUS / CELL)


@dataclass(frozen=True)
class Footprint:
    """One cell of the grid.

    Attributes:
        row, column: grid indices, negative south of the equator and west of Greenwich.
        epsg: UTM zone of the south-west corner. left, top: corner of the image, metres.
        latitude, longitude: of the image's centre, degrees.
        mgrs: 100 km square of the centre, such as "33NZA".
    """

    row: int
    column: int
    epsg: int
    left: float
    top: float
    latitude: float
    longitude: float
    mgrs: str

    @property
    def name(self) -> str:
        """The cell's name, such as "0U_199R"."""
        up = f"{self.row}U" if self.row >= 0 else f"{-self.row}D"
        right = f"{self.column}R" if self.column >= 0 else f"{-self.column}L"
        return f"{up}_{right}"


def columns(row: int) -> int:
    """Cells around the circle of latitude of a row."""
    circumference = 2 * math.pi * _RADIUS * math.cos(math.radians(row * 180 / ROWS))
    return math.ceil(circumference / CELL)


def footprint(row: int, column: int, px: int) -> Footprint:
    """The image of a cell, `px` pixels of 10 m around the cell's centre."""
    south, west = row * 180 / ROWS, column * 360 / columns(row)
    zone = math.floor((west + 180) / 6) + 1
    epsg = (32700 if south < 0 else 32600) + zone
    transformer = Transformer.from_crs(4326, epsg, always_xy=True)
    x, y = transformer.transform(west, south)
    x, y = x + CELL / 2, y + CELL / 2
    longitude, latitude = transformer.transform(x, y, direction="INVERSE")
    half = px * 5.0
    mgrs = _mgrs(zone, latitude, x, y)
    return Footprint(row, column, epsg, x - half, y + half, latitude, longitude, mgrs)


def _mgrs(zone: int, latitude: float, x: float, y: float) -> str:
    band = "CDEFGHJKLMNPQRSTUVWXX"[int((latitude + 80) // 8)]
    letters = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3]
    rows = "ABCDEFGHJKLMNPQRSTUV"
    shift = 5 if zone % 2 == 0 else 0
    return f"{zone:02d}{band}{letters[int(x // 1e5) - 1]}{rows[(int(y // 1e5) + shift) % 20]}"


def settle(rng: np.random.Generator, cells: int, px: int) -> list[tuple[str, Footprint]]:
    """Chooses biome and place of every cell; no two cells overlap.

    The numbers of cells per biome follow the biomes' weights by largest remainder, so that also
    small archives have a long tail.

    Returns:
        (biome name, footprint), in random order.
    """
    names = list(BIOMES)
    weights = np.array([BIOMES[name].weight for name in names])
    quota = cells * weights / weights.sum()
    counts = np.floor(quota).astype(int)
    # A little jitter so that archives of other seeds favour other rare biomes.
    order = np.argsort(-(quota - counts) - 0.2 * rng.random(len(names)), kind="stable")
    counts[order[: cells - counts.sum()]] += 1
    kinds = rng.permutation(np.repeat(names, counts))
    taken: set[tuple[int, int]] = set()
    places = []
    for kind in kinds:
        boxes = BIOMES[kind].boxes
        for _ in range(1000):
            south, west, north, east = boxes[rng.integers(len(boxes))]
            row = int(rng.uniform(south, north) * ROWS / 180)
            column = int(rng.uniform(west, east) * columns(row) / 360)
            # Images are wider than cells: neighbours would write over each other's land cover.
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in range(-2, 3)}
            if not near & taken:
                break
        taken.add((row, column))
        places.append((str(kind), footprint(row, column, px)))
    return places

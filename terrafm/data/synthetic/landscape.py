"""Land-cover maps with spatial structure: coasts, rivers, lakes, fields, towns, forests.

A biome says how much of each cover there is; random fields of elevation, moisture and settlement
say where. The same landscape is then seen by optics and radar at different times.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from terrafm.data.synthetic.noise import Field, Mask, Parcels, above, contour, fractal, parcels

TREE, SHRUB, GRASS, CROP, BUILT, BARE = 10, 20, 30, 40, 50, 60
SNOW, WATER, WETLAND, MANGROVE, MOSS = 70, 80, 90, 95, 100

MATERIALS = (
    "broadleaf", "conifer", "shrub", "grass", "cereal", "rapeseed", "stubble", "soil",
    "roof", "tile", "asphalt", "bright_roof", "sand", "rock", "snow", "ice",
    "water", "marsh", "mangrove", "moss",
)  # fmt: skip
M = {name: number for number, name in enumerate(MATERIALS)}

Box = tuple[float, float, float, float]
Lay = Callable[[Mask, int, int | NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Biome:
    """A kind of place: how often it occurs, where on the globe, what covers it.

    Attributes:
        weight: share of the archive's cells.
        boxes: (south, west, north, east) in degrees, regions of the globe.
        vegetation: cover code -> share of what water, towns and fields leave, wettest first.
        water, wet, snow, built, crop: shares of the cell.
        wet_code: cover of the wet fringe, herbaceous wetland or mangroves.
        relief: strength of slopes. rivers: river width, pixels. conifer: share of conifers.
        green: mean greenness -1..1. pivot: fields are irrigated circles.
    """

    weight: float
    boxes: tuple[Box, ...]
    vegetation: dict[int, float]
    water: float = 0.02
    wet: float = 0.0
    wet_code: int = WETLAND
    snow: float = 0.0
    built: float = 0.01
    crop: float = 0.0
    relief: float = 0.5
    rivers: float = 3.0
    conifer: float = 0.2
    green: float = 0.3
    pivot: bool = False


BIOMES: dict[str, Biome] = {
    "farmland": Biome(
        0.19,
        ((44, -2, 54, 40), (37, -98, 46, -83), (24, 75, 30, 86), (-36, -64, -30, -58)),
        {TREE: 0.45, GRASS: 0.45, SHRUB: 0.10},
        built=0.06, crop=0.68, relief=0.25,
    ),
    "temperate_forest": Biome(
        0.12,
        ((45, 6, 52, 26), (35, -84, 46, -72), (36, 128, 44, 142), (-44, -73, -38, -71)),
        {TREE: 0.82, GRASS: 0.14, SHRUB: 0.04},
        built=0.02, crop=0.08, relief=1.2, conifer=0.4, green=0.5,
    ),
    "boreal": Biome(
        0.10,
        ((56, 60, 65, 120), (52, -120, 60, -75), (60, 14, 66, 30)),
        {TREE: 0.70, SHRUB: 0.12, GRASS: 0.12, MOSS: 0.06},
        water=0.09, wet=0.08, built=0.002, relief=0.5, conifer=0.9, green=0.1,
    ),
    "rainforest": Biome(
        0.10,
        ((-9, -72, 3, -54), (-3, 14, 4, 28), (-3, 109, 4, 116)),
        {TREE: 0.92, GRASS: 0.06, SHRUB: 0.02},
        water=0.03, built=0.005, crop=0.03, relief=0.4, rivers=9.0, conifer=0.0, green=0.9,
    ),
    "savanna": Biome(
        0.09,
        ((6, -10, 13, 28), (-16, 16, -8, 36), (-18, -52, -10, -44), (-18, 128, -14, 142)),
        {TREE: 0.12, SHRUB: 0.36, GRASS: 0.50, BARE: 0.02},
        built=0.01, crop=0.08, relief=0.5, conifer=0.0, green=-0.2,
    ),
    "steppe": Biome(
        0.08,
        ((46, 52, 51, 88), (39, -108, 47, -99), (-48, -70, -40, -66)),
        {GRASS: 0.84, SHRUB: 0.08, BARE: 0.08},
        built=0.005, crop=0.10, relief=0.6, green=-0.3, pivot=True,
    ),
    "desert": Biome(
        0.08,
        ((19, -6, 29, 30), (19, 43, 28, 54), (-28, 120, -22, 137), (38, 78, 42, 92)),
        {SHRUB: 0.06, GRASS: 0.04, BARE: 0.90},
        water=0.0, built=0.006, crop=0.02, relief=0.9, rivers=0.0, green=-0.8, pivot=True,
    ),
    "coast": Biome(
        0.06,
        ((36, -9, 44, -7), (-36, 150, -29, 153), (8, 76, 16, 80), (-26, -48, -12, -38)),
        {TREE: 0.40, GRASS: 0.30, SHRUB: 0.25, BARE: 0.05},
        water=0.45, built=0.07, crop=0.12, relief=0.8,
    ),
    "city": Biome(
        0.06,
        ((48, 2, 53, 14), (34, -88, 42, -74), (30, 112, 38, 121), (-25, -48, -21, -43)),
        {TREE: 0.45, GRASS: 0.45, BARE: 0.10},
        water=0.03, built=0.66, crop=0.10, relief=0.2, rivers=7.0,
    ),
    "shrubland": Biome(
        0.04,
        ((30, -118, 36, -106), (36, -6, 40, 0), (-33, 18, -28, 25), (-32, 122, -28, 130)),
        {TREE: 0.06, SHRUB: 0.74, GRASS: 0.12, BARE: 0.08},
        built=0.02, crop=0.05, relief=1.0, rivers=1.5, green=-0.4,
    ),
    "sea": Biome(
        0.03,
        ((44, -40, 55, -20), (-40, -20, -20, 5), (-30, 60, -10, 95), (10, -160, 40, -135)),
        {GRASS: 1.0},
        water=1.0, built=0.0, rivers=0.0,
    ),
    "marsh": Biome(
        0.03,
        ((-20, 22, -18, 24), (60, 66, 64, 78), (25, -82, 27, -80), (-20, -58, -16, -56)),
        {TREE: 0.25, GRASS: 0.55, SHRUB: 0.20},
        water=0.16, wet=0.58, built=0.003, relief=0.1, rivers=6.0, green=0.4,
    ),
    "tundra": Biome(
        0.03,
        ((68, 70, 74, 110), (66, -150, 71, -100), (68, 18, 70, 28)),
        {SHRUB: 0.10, GRASS: 0.18, MOSS: 0.62, BARE: 0.10},
        water=0.10, wet=0.04, snow=0.02, built=0.0, relief=0.5, green=-0.1,
    ),
    "ice": Biome(
        0.025,
        ((70, -50, 77, -28), (78, 14, 80, 26), (60, -142, 62, -138), (-50, -74, -47, -73)),
        {MOSS: 0.15, BARE: 0.85},
        water=0.04, snow=0.72, built=0.0, relief=1.4, rivers=0.0, green=-0.5,
    ),
    "mangrove": Biome(
        0.02,
        ((21, 88, 22, 90), (-3, -50, 0, -45), (4, 5, 5, 7), (-14, 130, -12, 132)),
        {TREE: 0.50, GRASS: 0.35, BARE: 0.15},
        water=0.30, wet=0.50, wet_code=MANGROVE, built=0.01, crop=0.08,
        relief=0.05, rivers=12.0, green=0.7,
    ),
}  # fmt: skip


@dataclass
class Landscape:
    """One place without weather, season or instrument.

    Attributes:
        cover: (px, px) uint8 WorldCover codes.
        material: (px, px) uint8, index into MATERIALS.
        elevation: (px, px) float32, about standard normal.
        greenness: (px, px) float32, local deviation of greenness; clarity 0..1 of water.
        grain: (px, px) float32, fine texture: crowns, houses, furrows; about standard normal.
        biome: the kind of place.
    """

    cover: NDArray[np.uint8]
    material: NDArray[np.uint8]
    elevation: Field
    greenness: Field
    grain: Field
    biome: Biome = field(repr=False)


def make_landscape(rng: np.random.Generator, biome: Biome, px: int) -> Landscape:
    """Draws one place of a biome.

    Args:
        rng: source of randomness; the same state draws the same place.
        biome: what covers the place and how much of it.
        px: side, pixels of 10 m.
    """
    elevation = fractal(rng, px, 620, 5, 0.5)
    moisture = fractal(rng, px, 300, 3, 0.62) - np.float32(0.35) * elevation
    settlement = fractal(rng, px, 360, 5, 0.5) - np.float32(0.3) * elevation
    vary = rng.lognormal(0.0, 0.35, 6)
    cover = np.zeros((px, px), np.uint8)
    material = np.zeros((px, px), np.uint8)
    grain = fractal(rng, px, 7, 3, 0.9)
    free = np.ones((px, px), np.bool_)

    def lay(where: Mask, code: int, what: int | NDArray[np.uint8]) -> None:
        cover[where] = code
        material[where] = what[where] if isinstance(what, np.ndarray) else what
        free[where] = False

    water = above(-elevation, 1.0 if biome.water == 1 else min(biome.water * vary[0], 0.75))
    if biome.rivers:
        course = fractal(rng, px, 560, 24, 0.5) + np.float32(0.15) * elevation
        water |= contour(course, biome.rivers * vary[1], rng.normal(0, 0.3))
    lay(water, WATER, M["water"])

    snow = above(elevation, min(biome.snow * vary[2], 0.95), free)
    icy = above(fractal(rng, px, 160, 5), rng.uniform(0.02, 0.25))
    frozen = np.where(icy, M["ice"], M["snow"]).astype(np.uint8)
    lay(snow, SNOW, frozen)

    lowland = np.float32(0.45) * moisture - elevation
    wet = above(lowland, min(biome.wet * vary[3], 0.9), free)
    lay(wet, biome.wet_code, M["mangrove"] if biome.wet_code == MANGROVE else M["marsh"])

    if biome.built:
        town = above(settlement, min(biome.built * vary[4], 0.9), free)
        _lay_town(rng, town, settlement, water, lay)
    if biome.crop:
        arable = fractal(rng, px, 260, 12, 0.5) - np.float32(0.5) * elevation
        fields = above(arable, min(biome.crop * vary[5], 0.95), free)
        grain = np.where(fields, _lay_fields(rng, fields, biome, lay), grain)

    _lay_vegetation(rng, biome, moisture, grain, free, lay)
    greenness = np.float32(0.22) * moisture + np.float32(0.12) * fractal(rng, px, 24, 4)
    murky = 0.15 if biome.water == 1 else 0.45
    clarity = np.float32(1 - murky * rng.uniform(0, 2)) + np.float32(murky) * fractal(
        rng, px, 500, 20
    )
    greenness = np.where(water, clarity, greenness)
    return Landscape(cover, material, elevation, greenness, grain, biome)


def _lay_vegetation(
    rng: np.random.Generator, biome: Biome, moisture: Field, grain: Field, free: Mask, lay: Lay
) -> None:
    px = len(moisture)
    codes = list(biome.vegetation)
    shares = np.array([biome.vegetation[code] for code in codes]) * rng.lognormal(
        0, 0.3, len(codes)
    )
    patchy = moisture + np.float32(0.45) * grain
    stand = above(fractal(rng, px, 130, 10), biome.conifer)
    rocky = above(fractal(rng, px, 220, 6) + np.float32(0.25) * grain, rng.uniform(0.2, 0.7))
    picks: dict[int, int | NDArray[np.uint8]] = {
        TREE: np.where(stand, M["conifer"], M["broadleaf"]).astype(np.uint8),
        SHRUB: M["shrub"],
        GRASS: M["grass"],
        BARE: np.where(rocky, M["rock"], M["sand"]).astype(np.uint8),
        MOSS: M["moss"],
    }
    for i, code in enumerate(codes):
        last = i == len(codes) - 1
        part = free.copy() if last else above(patchy, shares[i] / shares[i:].sum(), free)
        lay(part, code, picks[code])


def _lay_town(
    rng: np.random.Generator, town: Mask, settlement: Field, water: Mask, lay: Lay
) -> None:
    # Streets, lots of two to four pixels in them, gardens more often away from the centre.
    px = len(town)
    block = parcels(rng, px, rng.uniform(9, 16), rng.uniform(8, 12))
    lot = parcels(rng, px, rng.uniform(2.2, 4), rng.uniform(2.2, 3.5))
    dice = rng.random(4096, dtype=np.float32)[(lot.number + 31 * block.number) & 4095]
    roofs = rng.permutation([M["roof"], M["tile"], M["roof"], M["bright_roof"]])
    what = np.select(
        [block.edge < 0.8, dice < 0.5, dice < 0.72, dice < 0.8],
        [M["asphalt"], roofs[0], roofs[1], roofs[3]],
        default=roofs[2],
    ).astype(np.uint8)
    edge = np.quantile(settlement[town], 0.35) if town.any() else 0.0
    garden = (dice > np.where(settlement < edge, 0.62, 0.86)) & (block.edge >= 0.8)
    park = rng.random(4096, dtype=np.float32)[block.number] > 0.94
    lay(town & (garden | park) & (dice > 0.9), 10, M["broadleaf"])
    lay(town & (garden | park) & (dice <= 0.9), 30, M["grass"])
    lay(town & ~garden & ~park, BUILT, what)
    road = contour(fractal(rng, px, 700, 160, 0.4), 1.6, rng.normal(0, 0.3))
    reach = settlement > (edge - 1.2)
    lay(road & reach & ~water, BUILT, M["asphalt"])


def _lay_fields(rng: np.random.Generator, fields: Mask, biome: Biome, lay: Lay) -> Field:
    # Two patchworks of different size and direction meet along an irregular line.
    px = len(fields)
    size = rng.uniform(10, 34)
    first = parcels(rng, px, size * rng.uniform(1, 2.2), size)
    second = parcels(rng, px, size * rng.uniform(1, 2.2), size * rng.uniform(0.6, 1.4))
    side = fractal(rng, px, 330, 60) > rng.normal(0, 0.4)
    patch = Parcels(
        number=np.where(side, first.number, second.number),
        edge=np.where(side, first.edge, second.edge),
        along=np.where(side, first.along, second.along),
        across=np.where(side, first.across, second.across),
    )
    crops = ("cereal", "cereal", "rapeseed", "stubble", "soil")
    table = rng.choice([M[c] for c in crops], 4096, p=rng.dirichlet([2, 2, 0.7, 1.5, 2])).astype(
        np.uint8
    )
    what = table[patch.number]
    grassy = rng.random(4096, dtype=np.float32)[patch.number] < (0.02 if biome.pivot else 0.10)
    if biome.pivot:
        circle = patch.edge > 1.5
        what = np.where(circle, what, M["soil"]).astype(np.uint8)
    lay(fields & ~grassy, CROP, what)
    lay(fields & grassy, GRASS, M["grass"])
    hedge = rng.random(4096, dtype=np.float32)[(patch.number * 3 + 1) & 4095] < 0.22
    lay(fields & hedge & (patch.edge < 0.7), TREE, M["broadleaf"])
    period = rng.uniform(3.0, 5.5)
    furrows = np.sin(patch.across * np.float32(2 * np.pi / period))
    within = rng.standard_normal(4096, dtype=np.float32)[(patch.number * 7 + 3) & 4095]
    return np.asarray(np.float32(0.8) * furrows + np.float32(0.9) * within, np.float32)

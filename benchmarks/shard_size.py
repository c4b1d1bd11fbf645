"""Bytes of the shards against the same pixels in Major-TOM's LZW GeoTIFF.

    python benchmarks/shard_size.py [--json]

There, radar is float32 linear power, here int16 hundredths of a dB; optical pixels are uint16 in
both. GeoTIFFs are one file a band at native resolution, in the style of a real Major-TOM cell,
but with blocks cut to the tile. Bar: at most 0.75, all three modalities together.
"""

from collections import Counter
from pathlib import Path

from common import Figure, note, parse, parser, report
from harness import codecs
from harness.pixels import GROUPS, cell_bytes, describe, is_real, profile, tiles
from harness.tiles import geotiffs

from terrafm.modalities import MODALITIES

BAR = 0.75


def measure(real: Path, count: int) -> list[Figure]:
    """Sizes summed over some tiles."""
    style = profile(real)
    archive: Counter[str] = Counter()
    shards = {name: Counter[str]() for name in codecs.names()}
    of_cell: Counter[str] = Counter()
    for number, tile in enumerate(tiles(real, count)):
        for modality, bands in geotiffs(tile, style).items():
            archive[modality] += sum(len(content) for content in bands.values())
        for codec, sizes in shards.items():
            for group in GROUPS:
                size = len(codecs.encode(codec, tile.stored[group.name]))
                sizes[group.modality] += size
                # The first four tiles are the four quarters of the real cell.
                of_cell[codec] += size if number < 4 and group.modality == "s2_l2a" else 0
        note(f"tile {number + 1} of {count}")
    figures = []
    for codec, sizes in shards.items():
        together = sizes.total() / archive.total()
        label = f"shard bytes / LZW GeoTIFF, {codec}"
        bar = BAR if codec == codecs.names()[0] else None
        figures.append(Figure(f"{label}, all modalities", together, bar, "lower", "x"))
        for modality in MODALITIES:
            ratio = sizes[modality] / archive[modality]
            figures.append(Figure(f"{label}, {modality}", ratio, None, "lower", "x"))
        if is_real(real) and count >= 4:
            ratio = of_cell[codec] / cell_bytes(real)
            name = f"{label}, s2_l2a against the real cell's own files"
            figures.append(Figure(name, ratio, None, "lower", "x"))
    return figures


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=16, help="number of tiles (%(default)s)")
    arguments = parse(options)
    count = 1 if arguments.quick else arguments.tiles
    report(measure(arguments.real, count), arguments, describe(arguments.real))


if __name__ == "__main__":
    main()

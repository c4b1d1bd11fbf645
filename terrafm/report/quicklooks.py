"""Small pictures of tiles: every sensor beside the others, a tile of each class."""

from __future__ import annotations

import numpy as np

from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.strips import beside, jpeg, sensor_look
from terrafm.report.blocks import Block, Picture, Text
from terrafm.units import place_name


def quicklooks(dataset: Dataset, most: int = 8) -> list[Block]:
    """A tile of each of the rarest and most common classes, `most` at most, in all its sensors."""
    counts = dataset.class_counts()
    order = sorted(counts, key=lambda code: (-counts[code], code))
    half = most // 2
    codes = order if len(order) <= most else [*order[: most - half], *order[len(order) - half :]]
    blocks: list[Block] = []
    failed = []
    for code in codes:
        rows = np.flatnonzero(dataset.land_cover == code)
        if not len(rows):
            continue
        row = int(rows[len(rows) // 2])
        try:
            blocks.append(_picture(dataset, row, str(dataset.legend.get(code, code))))
        except (OSError, TerraFMError) as error:
            failed.append(str(error))
    if failed:
        told = f"{len(failed)} tiles cannot be read; the first: {failed[0]}"
        blocks.append(Text(told))
    return blocks


def _picture(dataset: Dataset, row: int, name: str) -> Picture:
    pixels = dataset.read_tile(row)
    sensors = [
        sensor
        for sensor in SENSOR_TITLES
        if sensor in dataset.modalities
        and any(g.modality == sensor and g.name in pixels for g in dataset.groups)
    ]
    looks = [sensor_look(dataset, pixels, sensor) for sensor in sensors]
    place = place_name(float(dataset.latitude[row]), float(dataset.longitude[row]))
    shown = ", ".join(SENSOR_TITLES[sensor] for sensor in sensors)
    return Picture(
        name,
        jpeg(beside(looks)),
        f"Tile {dataset.tile_ids[row]} of class {name} at {place}, from left to right: {shown}.",
        f"{dataset.tile_ids[row]}, {place}: {shown}",
    )

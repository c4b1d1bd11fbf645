"""Small pictures of tiles: every sensor beside the others, a tile of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.colours import stretch, stretch_limits, whole_tile
from terrafm.report.blocks import Block, Picture, Text
from terrafm.units import place_name

_SIDE, _GAP, _QUALITY = 224, 6, 82

Pixels = NDArray[np.uint8]


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


def sensor_look(dataset: Dataset, pixels: dict[str, Any], sensor: str, side: int = _SIDE) -> Pixels:
    """(side, side, 3) a tile in natural or false colour."""
    image = whole_tile(dataset, pixels, sensor)
    shown = stretch(image, stretch_limits(image, sensor))
    return resized((255 * shown).round().astype(np.uint8), side)


def resized(image: Pixels, side: int) -> Pixels:
    """(side, side, 3); pixels stay sharp where there are fewer than are shown."""
    enlarges = image.shape[0] < side
    method = cv2.INTER_NEAREST if enlarges else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (side, side), interpolation=method), np.uint8)


def beside(images: Sequence[Pixels]) -> Pixels:
    """(H, W, 3) images of one height in a row, with a white gap between."""
    gap = np.full((images[0].shape[0], _GAP, 3), 255, np.uint8)
    parts: list[Pixels] = []
    for image in images:
        parts += [image, gap]
    return np.concatenate(parts[:-1], axis=1)


def jpeg(image: Pixels, quality: int = _QUALITY) -> bytes:
    """An (H, W, 3) picture as a JPEG file."""
    done, content = cv2.imencode(
        ".jpg", image[..., ::-1].copy(), [int(cv2.IMWRITE_JPEG_QUALITY), quality]
    )
    assert done
    return bytes(content.tobytes())

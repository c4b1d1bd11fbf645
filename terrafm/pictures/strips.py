"""Small pictures of tiles, side by side in a strip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terrafm.data.shards.dataset import Dataset
from terrafm.pictures.colours import stretch, stretch_limits, whole_tile

_SIDE, _GAP, _QUALITY = 224, 6, 82

Pixels = NDArray[np.uint8]


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

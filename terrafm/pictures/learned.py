"""Pictures of what a run's encoder has learned, on tiles of its dataset.

Principal components of patch tokens as colours, where the CLS token looks in the last block, the
nearest neighbours of tiles of rare classes, and the crops of one sample. The model is loaded and
computes here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.config import Config
from terrafm.errors import UsageError
from terrafm.eval.datasets.compatibility import normalisation_for
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import batches
from terrafm.eval.validation import load_teacher
from terrafm.modalities import SENSOR_TITLES
from terrafm.models.encoder import Encoder
from terrafm.pictures.sample import quicklook
from terrafm.pictures.strips import Pixels, beside, jpeg, resized, sensor_look
from terrafm.storage import join, read_bytes
from terrafm.train.checkpoints.validations import ValidationTask
from terrafm.train.metrics.trackers import TrackedPicture

# Tiles that are shown, tiles among which neighbours are looked for, images at once, pixels.
_SHOWN, _SEARCHED, _BATCH, _SIDE, _SMALL = 6, 256, 16, 176, 112
_NEIGHBOURS = 5
# The side of an input is twice that of a global crop: patches small enough to see something.
_TIMES = 2
_PATCH = 16

_Directions = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class LearnedPictures:
    """What a teacher sees on tiles of its dataset.

    Attributes:
        tiles: each in every sensor, with the components of its tokens and the attention.
        neighbours: a tile of each of the rarest classes with those that look alike to the encoder.
        crops: of one sample.
    """

    tiles: tuple[TrackedPicture, ...]
    neighbours: tuple[TrackedPicture, ...]
    crops: TrackedPicture | None


def learned_pictures(
    checkpoint: str,
    data: str,
    fingerprint: str | None,
    config: Config | None,
    device: torch.device | None = None,
) -> LearnedPictures:
    """Draws them.

    Args:
        checkpoint: URI of its folder.
        data: URI of a dataset of ingest.
        fingerprint: of the version that is read; None takes the newest.
        config: of the run; None where it is not known: 224 pixels, and no crops.
        device: where the encoder computes; by default the GPU that is at hand, or the CPU.

    Raises:
        UsageError: the dataset or the checkpoint is gone, or they share no sensor.
        TerraFMError: a tile cannot be read, or the checkpoint is damaged.
    """
    size = 224 if config is None else config.data.global_size
    sensors = None if config is None else tuple(config.data.modalities)
    place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen, neighbours = _pictures(checkpoint, data, fingerprint, size, sensors, place)
    crops = None if config is None else _crops(ShardTiles(data, fingerprint), config)
    return LearnedPictures(seen, neighbours, crops)


def pictures_of_checkpoint(
    task: ValidationTask, checkpoint: str, device: torch.device
) -> list[TrackedPicture]:
    """What trackers are given with a validation.

    Args:
        task: the run.
        checkpoint: URI of its folder.
        device: where the encoder computes.

    Raises:
        UsageError, TerraFMError: as `learned_pictures`.
    """
    found = learned_pictures(checkpoint, task.data, task.fingerprint, task.config, device)
    return [*found.tiles, *found.neighbours, *filter(None, [found.crops])]


@lru_cache(maxsize=16)
def _pictures(
    checkpoint: str,
    data: str,
    fingerprint: str | None,
    size: int,
    wanted: tuple[str, ...] | None,
    device: torch.device,
) -> tuple[tuple[TrackedPicture, ...], tuple[TrackedPicture, ...]]:
    """Tiles and neighbours; kept, for a page that is written again has the same ones."""
    encoder = load_teacher(checkpoint).eval().to(device)
    tiles = ShardTiles(data, fingerprint)
    known = wanted or (encoder.contract.modalities if encoder.contract else tiles.modalities)
    sensors = [name for name in SENSOR_TITLES if name in tiles.modalities and name in known]
    if not sensors:
        raise UsageError(f"{data} has none of the sensors that the encoder knows")
    normalisation, _ = normalisation_for(encoder, tiles, sensors, [])
    rows = _rare_and_common(tiles)
    side = max(_PATCH, _TIMES * size // _PATCH * _PATCH)
    maps: dict[str, dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
    with torch.inference_mode():
        for sensor in sensors:
            here = [row for row in rows if tiles.available(sensor)[row]]
            for at, pixels in batches(tiles, [sensor], normalisation, side, _BATCH, here):
                found = _seen(encoder, pixels[sensor].to(device), sensor)
                for place, row in enumerate(at):
                    maps.setdefault(sensor, {})[here[row]] = (found[0][place], found[1][place])
    directions = {sensor: _directions(found) for sensor, found in maps.items()}
    shown = tuple(_tile_picture(tiles, row, maps, directions) for row in rows)
    return shown, tuple(_neighbours(encoder, tiles, sensors[0], normalisation, size, device))


def _rare_and_common(tiles: ShardTiles) -> list[int]:
    """A tile of each of the rarest classes and of the most common ones."""
    labels = tiles.labels
    counts = np.bincount(labels, minlength=len(tiles.classes))
    order = [int(c) for c in np.argsort(counts, kind="stable") if counts[c]]
    half = _SHOWN // 2
    chosen = order if len(order) <= _SHOWN else [*order[:half], *order[-half:]]
    return [int(rows[len(rows) // 2]) for c in chosen if len(rows := np.flatnonzero(labels == c))]


def _seen(
    encoder: Encoder, pixels: Tensor, sensor: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Patch tokens (B, h, w, D) and attention of the CLS token (B, h, w), which adds up to 1."""
    kept: list[Tensor] = []
    attention: Any = encoder.blocks[-1].attn
    hook = attention.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        (tokens,) = encoder.forward_features(pixels, sensor)
    finally:
        hook.remove()
    height, width = tokens.shape[-2:]
    (x,) = kept
    count, length, dim = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(count, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    query, key = qkv[0][:, :, :1], qkv[1]
    weights = (query @ key.transpose(-2, -1) / (dim // heads) ** 0.5).softmax(-1)
    looked = weights[:, :, 0, 1:].mean(1)
    looked = looked / looked.sum(-1, keepdim=True)
    shown = looked.reshape(count, height, width).float().cpu().numpy()
    return tokens.permute(0, 2, 3, 1).float().cpu().numpy(), shown


def _tile_picture(
    tiles: ShardTiles,
    row: int,
    maps: dict[str, dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]],
    directions: dict[str, _Directions],
) -> TrackedPicture:
    """A row for each sensor: the tile, its tokens in colour, the attention."""
    dataset = tiles.dataset
    pixels = dataset.read_tile(row)
    strips = []
    for sensor, found in maps.items():
        if row not in found:
            continue
        tokens, looked = found[row]
        look = sensor_look(dataset, pixels, sensor, _SIDE)
        colours = _colours(tokens, *directions[sensor])
        strips.append(beside([look, resized(colours, _SIDE), _bright(look, looked)]))
    name = tiles.classes[int(tiles.labels[row])]
    sensors = ", ".join(SENSOR_TITLES[s] for s in maps if row in maps[s])
    gap = np.full((6, strips[0].shape[1], 3), 255, np.uint8)
    stacked = np.concatenate([part for strip in strips for part in (strip, gap)][:-1])
    return TrackedPicture(
        "tiles",
        name,
        jpeg(np.asarray(stacked, np.uint8)),
        f"Tile {tiles.names[row]} of class {name} by {sensors}, one below the other; from left to "
        "right the tile, the main directions of its patch tokens as colours, and the attention of "
        "the last block.",
        f"{tiles.names[row]}: {sensors}",
    )


def _directions(
    found: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> _Directions:
    """Mean (D,), three main directions (D, 3), and their range (2, 3) over all tiles' tokens."""
    tokens = np.concatenate([t.reshape(-1, t.shape[-1]) for t, _ in found.values()])
    mean = tokens.mean(0)
    centred = tokens - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    main = vectors[:, ::-1][:, :3]
    spread = np.percentile(centred @ main, (2, 98), axis=0)
    return mean, np.asarray(main, np.float32), np.asarray(spread, np.float32)


def _colours(
    tokens: NDArray[np.float32],
    mean: NDArray[np.float32],
    main: NDArray[np.float32],
    spread: NDArray[np.float32],
) -> Pixels:
    low, high = spread
    values = ((tokens - mean) @ main - low) / np.maximum(high - low, 1e-9)
    return np.asarray((255 * np.clip(values, 0, 1)).round(), np.uint8)


def _bright(look: Pixels, attention: NDArray[np.float32]) -> Pixels:
    """A tile in grey under its attention, from dark blue to yellow."""
    low, high = np.percentile(attention, (2, 99))
    level = np.clip((attention - low) / max(high - low, 1e-12), 0, 1)
    level = np.asarray((255 * level).round(), np.uint8)
    smooth = cv2.resize(level, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
    coloured = cv2.applyColorMap(smooth, cv2.COLORMAP_CIVIDIS)[..., ::-1].astype(np.float32)
    grey = look.astype(np.float32).mean(-1, keepdims=True)
    return np.asarray((0.75 * coloured + 0.25 * grey).round(), np.uint8)


def _neighbours(
    encoder: Encoder,
    tiles: ShardTiles,
    sensor: str,
    normalisation: Any,
    size: int,
    device: torch.device,
) -> list[TrackedPicture]:
    """Tiles of rare classes, each followed by those that the encoder takes for most alike."""
    there = np.flatnonzero(tiles.available(sensor))
    labels = tiles.labels[there]
    counts = np.bincount(labels, minlength=len(tiles.classes))
    # All classes come in, the rarest first: of common ones a part.
    order = np.lexsort((np.arange(len(there)), _turn(labels)))
    rows = np.sort(there[order[:_SEARCHED]]).tolist()
    side = max(_PATCH, size // _PATCH * _PATCH)
    vectors = np.zeros((len(rows), encoder.embed_dim), np.float32)
    with torch.inference_mode():
        for at, pixels in batches(tiles, [sensor], normalisation, side, _BATCH, rows):
            vectors[at] = encoder(pixels[sensor].to(device), sensor).float().cpu().numpy()
    vectors -= vectors.mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pictures = []
    rare = [int(c) for c in np.argsort(counts, kind="stable") if counts[c]][: _SHOWN // 2]
    for label in rare:
        query = next(n for n, row in enumerate(rows) if tiles.labels[row] == label)
        likeness = vectors @ vectors[query]
        likeness[query] = -np.inf
        found = np.argsort(-likeness, kind="stable")[:_NEIGHBOURS].tolist()
        shown = [rows[query], *(rows[n] for n in found)]
        images = [
            sensor_look(tiles.dataset, tiles.dataset.read_tile(row, [sensor]), sensor, _SMALL)
            for row in shown
        ]
        name = tiles.classes[label]
        told = ", ".join(
            f"{tiles.classes[int(tiles.labels[rows[n]])]} ({likeness[n]:.2f})" for n in found
        )
        alike = sum(tiles.labels[rows[n]] == label for n in found)
        all_alike = int((tiles.labels[rows] == label).sum())
        pictures.append(
            TrackedPicture(
                "neighbours",
                f"Neighbours of a tile of {name}",
                jpeg(beside(images)),
                f"Tile {tiles.names[rows[query]]} of class {name}, then its neighbours: {told}.",
                f"{alike} of {len(found)} are of its class, which {all_alike:,} of {len(rows):,} "
                f"tiles have; by {SENSOR_TITLES[sensor]}, cosine of centered "
                f"features: {told}.",
            )
        )
    return pictures


def _crops(tiles: ShardTiles, config: Config) -> TrackedPicture:
    """The crops that training cuts from a tile."""
    row = _rare_and_common(tiles)[0]
    with tempfile.TemporaryDirectory(prefix="terrafm-report-") as folder:
        file = join(folder, "sample.png")
        quicklook(tiles.dataset, row, config, file)
        image = cv2.imdecode(np.frombuffer(read_bytes(file), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    name = tiles.names[row]
    return TrackedPicture(
        "crops",
        "The crops of one sample",
        jpeg(np.asarray(image[..., ::-1], np.uint8)),
        f"Tile {name} in each sensor with its land cover, and the global and local crops of one "
        "sample of it.",
        name,
    )


def _turn(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many of its class come before each tile: sorting by it takes classes in turn."""
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turns[rows] = np.arange(len(rows))
    return turns

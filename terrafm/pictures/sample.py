"""What one sample looks like: the tile and the crops that are cut from it."""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from terrafm.config import Config
from terrafm.data.samples.crops import Cropper, Views
from terrafm.data.shards.dataset import Dataset
from terrafm.modalities import MODALITIES, SENSOR_TITLES
from terrafm.pictures.colours import (
    bare,
    class_colour,
    colours,
    stretch,
    stretch_limits,
    whole_tile,
)
from terrafm.pictures.figure import SAFE_COLOURS, picture
from terrafm.units import place_name


def quicklook(
    dataset: Dataset, row: int, config: Config, path: str | os.PathLike[str], position: int = 0
) -> None:
    """Draws a tile in all its modalities, its land cover, and the crops of one sample of it.

    Args:
        dataset: where the tile is.
        row: row number of the tile.
        config: crops, modality augmentation and seed.
        path: URI of the PNG.
        position: of the sample in epoch 0; another one has other crops.

    Raises:
        TerraFMError: the tile cannot be read.
    """
    pixels = dataset.read_tile(row)
    cropper = Cropper.for_dataset(dataset, config.data, config.train.seed)
    have = [dataset.modalities.index(name) for name in cropper.modalities]
    views = cropper.draw(np.array([0]), np.array([position]), dataset.available[[row]][:, have])
    crops = _cut(cropper, pixels, views)
    sensors = [name for name in SENSOR_TITLES if name in dataset.modalities]
    there = {group.modality for group in dataset.groups if group.name in pixels}
    shown = [name for name in sensors if name in there]
    whole = {name: whole_tile(dataset, pixels, name) for name in shown}
    limits = {name: stretch_limits(image, name) for name, image in whole.items()}
    n_global = views.teacher.shape[1]
    n_local = len(views.sizes) - n_global
    columns = min(8, max(6, n_local))
    heights = [3.6, 3.0] + [1.75 * -(-n_local // columns)] * bool(n_local)
    with picture(path, (11, sum(heights))) as figure:
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        ratios = (*[1.0] * len(sensors), 0.46)
        tile = parts[0].subplots(1, len(ratios), width_ratios=ratios)
        parts[0].subplots_adjust(left=0.012, right=0.985, top=0.84, bottom=0.02, wspace=0.04)
        for axis, name in zip(tile, sensors, strict=False):
            bare(axis)
            axis.set_title(SENSOR_TITLES[name], loc="left")
            if name not in whole:
                axis.text(0.5, 0.5, "not available", ha="center", color="#777777")
                continue
            axis.imshow(stretch(whole[name], limits[name]), interpolation="antialiased")
            _draw_boxes(axis, views, cropper.unit / dataset.gsd, n_global)
        _land_cover_bar(tile[-1], dataset, row)
        where = place_name(dataset.latitude[row], dataset.longitude[row])
        parts[0].suptitle(
            f"Tile {dataset.tile_ids[row]}   {where}   "
            f"{dataset.tile_size * dataset.gsd / 1000:g} km",
            x=0.012,
            y=0.98,
            ha="left",
            fontweight="bold",
            parse_math=False,
        )
        _draw_crops(parts[1], views, cropper, crops, limits, range(n_global), 2 * n_global)
        if n_local:
            rest = range(n_global, n_global + n_local)
            _draw_crops(parts[2], views, cropper, crops, limits, rest, columns)


def _cut(
    cropper: Cropper, pixels: dict[str, Any], views: Views
) -> list[dict[str, NDArray[np.float32]]]:
    """Per view: modality -> (C, S, S) physical values."""
    buffer = np.zeros(views.pixels, np.uint16)
    cropper.crop(pixels, views, 0, buffer)
    crops: list[dict[str, NDArray[np.float32]]] = []
    for view, size in enumerate(views.sizes.tolist()):
        crop = {}
        for m, name in enumerate(views.modalities):
            if views.drawn[0, view, m]:
                end = int(views.ends[0, view, m])
                modality = MODALITIES[name]
                stored = buffer[end - modality.channels * size**2 : end].view(modality.dtype)
                crop[name] = modality.to_physical(stored.reshape(-1, size, size))
        crops.append(crop)
    return crops


def _draw_crops(
    part: Any,
    views: Views,
    cropper: Cropper,
    crops: list[dict[str, NDArray[np.float32]]],
    limits: dict[str, NDArray[np.float64]],
    which: Sequence[int],
    columns: int,
) -> None:
    n_global = views.teacher.shape[1]
    panels: list[tuple[int, str, list[str]]] = []
    for view in which:
        student = [
            m for m, on in zip(cropper.modalities, views.student[0, view], strict=True) if on
        ]
        if view < n_global:
            seen = zip(cropper.modalities, views.teacher[0, view], strict=True)
            panels.append((view, "teacher", [m for m, on in seen if on]))
        panels.append((view, "student", student))
    rows = -(-len(panels) // columns)
    axes = np.atleast_1d(part.subplots(rows, columns)).ravel()
    part.subplots_adjust(left=0.012, right=0.985, top=0.88, bottom=0.02, wspace=0.06)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (view, who, names) in zip(axes, panels, strict=False):
        bare(axis)
        # Of fused modalities the first is shown, the others stand in the title.
        first = next(name for name in SENSOR_TITLES if name in names)
        axis.imshow(stretch(colours(crops[view][first], first), limits[first]))
        short = " + ".join(n.removeprefix("s2_").upper() for n in SENSOR_TITLES if n in names)
        label = f"{who} {view + 1}" if view < n_global else f"{view - n_global + 1}"
        axis.set_title(f"{label}: {short}", loc="left", fontsize=8, fontweight="normal")
        for spine in axis.spines.values():
            spine.set(visible=True, color=_box_colour(view, n_global), linewidth=2)


def _draw_boxes(axis: Axes, views: Views, scale: float, n_global: int) -> None:
    for view, (top, left, height, width) in enumerate((views.box[0] * scale).tolist()):
        globally = view < n_global
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                width,
                height,
                fill=False,
                edgecolor=_box_colour(view, n_global),
                linewidth=2.0 if globally else 1.1,
            )
        )
        axis.text(
            left + 0.02 * scale,
            top,
            f" {view + 1 if globally else view - n_global + 1}",
            color="white",
            fontsize=7,
            va="top",
            bbox={"facecolor": _box_colour(view, n_global), "edgecolor": "none", "pad": 0.8},
        )


def _box_colour(view: int, n_global: int) -> str:
    return (SAFE_COLOURS[1], SAFE_COLOURS[5])[view % 2] if view < n_global else SAFE_COLOURS[4]


def _land_cover_bar(axis: Axes, dataset: Dataset, row: int) -> None:
    histogram = dataset.histogram(row)
    total = sum(histogram.values())
    codes = sorted(histogram, key=lambda code: -histogram[code])
    order = sorted(dataset.class_counts(), key=lambda c: -dataset.class_counts()[c])
    bottom = 0.0
    axis.set(xlim=(0, 4.6), ylim=(1, 0))
    axis.set_axis_off()
    axis.set_title("Land cover", loc="left")
    last = -1.0
    for code in codes:
        share = histogram[code] / total
        number = order.index(code) if code in order else len(order)
        axis.add_patch(
            Rectangle(
                (0, bottom), 0.8, share, facecolor=class_colour(code, number), edgecolor="#333333"
            )
        )
        name = textwrap.fill(f"{share:.0%} {dataset.legend.get(code, code)}", 16)
        half = 0.03 * (1 + name.count("\n"))
        middle = max(bottom + share / 2, last + half)
        if share >= 0.01 and middle + half < 1.05:
            axis.text(0.95, middle, name, fontsize=7.5, va="center", parse_math=False)
            last = middle + half
        bottom += share

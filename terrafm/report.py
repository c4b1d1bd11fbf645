"""Pictures of a dataset and a run: where its tiles lie, what a sample looks like, how it learns."""

import json
import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from terrafm.config import Config
from terrafm.data.samples.crops import Cropper, Views
from terrafm.data.samples.plan import resampled_counts
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, SENSOR_TITLES
from terrafm.pictures import SAFE_COLOURS, picture
from terrafm.quicklooks import (
    bare,
    class_colour,
    colours,
    stretch,
    stretch_limits,
    whole_tile,
)
from terrafm.storage import exists, read_bytes
from terrafm.units import place_name

_MARKERS = "osD^vPX<>*p"


def tile_map(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Draws where the tiles lie, coloured by their majority class.

    Args:
        dataset: whose tiles.
        path: URI of the PNG.
    """
    with picture(path, (10, 5.2)) as figure:
        axes = figure.add_axes((0.05, 0.20, 0.93, 0.72))
        axes.set_facecolor("#f4f7fa")
        axes.set(xlim=(-180, 180), ylim=(-75, 85))
        axes.set_xticks(range(-180, 181, 30), [_degrees(d, "W", "E") for d in range(-180, 181, 30)])
        axes.set_yticks(range(-60, 81, 20), [_degrees(d, "S", "N") for d in range(-60, 81, 20)])
        axes.grid(color="#d5dde5", linewidth=0.6)
        axes.axhline(0, color="#a9b6c2", linewidth=0.9)
        for latitude in (-66.56, -23.44, 23.44, 66.56):
            axes.axhline(latitude, color="#c3ced8", linewidth=0.6, linestyle=(0, (4, 3)))
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        counts = dataset.class_counts()
        # Rare classes last, on top.
        for number, code in enumerate(sorted(counts, key=lambda c: -counts[c])):
            here = dataset.land_cover == code
            axes.scatter(
                dataset.longitude[here],
                dataset.latitude[here],
                s=34,
                marker=_MARKERS[number % len(_MARKERS)],
                color=class_colour(code, number),
                edgecolors="#333333",
                linewidths=0.5,
                label=f"{dataset.legend.get(code, code)} ({counts[code]})",
                zorder=3,
            )
        axes.set_title(
            f"{len(dataset)} tiles of {dataset.tile_size * dataset.gsd / 1000:g} km", loc="left"
        )
        figure.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=min(4, len(counts)),
            fontsize=8,
            handletextpad=0.2,
            columnspacing=1.5,
        )


def class_histogram(dataset: Dataset, config: Config, path: str | os.PathLike[str]) -> None:
    """Draws tiles per class in the dataset, and samples per class in an epoch after resampling.

    Args:
        dataset: whose tiles.
        config: its exponent, cap and epoch length.
        path: URI of the PNG.
    """
    before = dataset.class_counts()
    kept = dataset.sampled(config.data.water_keep)
    after = resampled_counts(
        dataset.land_cover if kept is None else dataset.land_cover[kept],
        exponent=config.data.resample_exponent,
        length=config.data.epoch_length,
        cap=config.data.resample_cap,
    )
    codes = sorted(before, key=lambda code: (-before[code], code))
    with picture(path, (7.5, 0.6 + 0.46 * len(codes) + 0.9)) as figure:
        axes = figure.subplots()
        y = np.arange(len(codes))
        bars = (
            axes.barh(y - 0.2, [before[c] for c in codes], 0.36, color="#b9c4ce"),
            axes.barh(
                y + 0.2,
                [after.get(c, 0) for c in codes],
                0.36,
                color=[class_colour(c, i) for i, c in enumerate(codes)],
                edgecolor="#333333",
                linewidth=0.6,
            ),
        )
        for container in bars:
            axes.bar_label(container, padding=3, fontsize=7.5, color="#444444")
        axes.set_yticks(y, [str(dataset.legend.get(c, c)) for c in codes])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#e3e8ed", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("tiles, samples of an epoch")
        axes.set_title("Classes before and after resampling", loc="left", pad=24)
        axes.legend(
            handles=[
                Patch(color="#b9c4ce", label="tiles in the dataset"),
                Patch(
                    facecolor="white",
                    edgecolor="#333333",
                    label=f"samples of an epoch (exponent {config.data.resample_exponent:g})",
                ),
            ],
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2,
            fontsize=8,
            borderaxespad=0.2,
        )
        figure.tight_layout()


def loss_curve(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws a run's loss, entropies and schedules over its steps.

    Args:
        metrics: URI of the run's metrics.jsonl.
        path: URI of the PNG.

    Raises:
        UsageError: the file does not exist or holds no step.
    """
    lines = _read_metrics(metrics)
    steps = np.array([line["step"] for line in lines])
    panels: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
        ("Loss (nats)", (("loss", "loss"),)),
        ("Entropy (nats)", (("teacher_entropy", "teacher"), ("student_entropy", "student"))),
        ("Learning rate", (("lr", "learning rate"),)),
        ("Teacher temperature", (("teacher_temp", "teacher temperature"),)),
    )
    with picture(path, (9.5, 5.6)) as figure:
        axes = figure.subplots(2, 2, sharex=True, height_ratios=(1.6, 1))
        for axis, (title, curves) in zip(axes.ravel(), panels, strict=True):
            for number, (key, label) in enumerate(curves):
                values = np.array([_number(line.get(key)) for line in lines])
                colour = SAFE_COLOURS[number]
                marker = "." if len(steps) <= 120 else ""
                few = 12 * len(curves) > len(steps) or key in ("lr", "teacher_temp")
                axis.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.2 if few else 0.7,
                    alpha=1.0 if few else 0.45,
                    marker=marker,
                    markersize=3,
                    label=label if few else None,
                    linestyle="-" if number == 0 or not few else "--",
                )
                if not few:
                    axis.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=label)
            axis.set_title(title, loc="left")
            axis.grid(color="#e3e8ed", linewidth=0.6)
            axis.tick_params(length=0)
            if len(curves) > 1:
                axis.legend(fontsize=8)
        for axis in axes[1]:
            axis.set_xlabel("step")
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        figure.tight_layout()


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
    shown = [name for name in SENSOR_TITLES if any(key.startswith(name) for key in pixels)]
    whole = {name: whole_tile(dataset, pixels, name) for name in shown}
    limits = {name: stretch_limits(image, name) for name, image in whole.items()}
    n_global = views.teacher.shape[1]
    n_local = len(views.sizes) - n_global
    columns = min(8, max(6, n_local))
    heights = [3.6, 3.0] + [1.75 * -(-n_local // columns)] * bool(n_local)
    with picture(path, (11, sum(heights))) as figure:
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        tile = parts[0].subplots(1, 4, width_ratios=(1, 1, 1, 0.46))
        parts[0].subplots_adjust(left=0.012, right=0.985, top=0.84, bottom=0.02, wspace=0.04)
        for axis, name in zip(tile, SENSOR_TITLES, strict=False):
            bare(axis)
            axis.set_title(SENSOR_TITLES[name], loc="left")
            if name not in whole:
                axis.text(0.5, 0.5, "not available", ha="center", color="#777777")
                continue
            axis.imshow(stretch(whole[name], limits[name]), interpolation="antialiased")
            _draw_boxes(axis, views, cropper.unit / dataset.gsd, n_global)
        _land_cover_bar(tile[3], dataset, row)
        where = place_name(dataset.latitude[row], dataset.longitude[row])
        parts[0].suptitle(
            f"Tile {dataset.tile_ids[row]}   {where}   "
            f"{dataset.tile_size * dataset.gsd / 1000:g} km",
            x=0.012,
            y=0.98,
            ha="left",
            fontweight="bold",
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
            axis.text(0.95, middle, name, fontsize=7.5, va="center")
            last = middle + half
        bottom += share


def _read_metrics(uri: str | os.PathLike[str]) -> list[dict[str, Any]]:
    if not exists(uri):
        raise UsageError(f"metrics {os.fspath(uri)} do not exist")
    lines = [json.loads(line) for line in read_bytes(uri).decode().splitlines() if line.strip()]
    steps = [line for line in lines if "step" in line and "loss" in line]
    if not steps:
        raise UsageError(f"metrics {os.fspath(uri)} hold no step")
    return steps


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    width = max(3, len(values) // 20) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _degrees(value: int, negative: str, positive: str) -> str:
    return f"{abs(value)}°{negative if value < 0 else positive if value > 0 else ''}"

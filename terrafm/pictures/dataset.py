"""Where a dataset's tiles lie, and how often each class is drawn."""

import os

import numpy as np
from matplotlib.patches import Patch

from terrafm.config import Config
from terrafm.data.samples.plan import make_plan
from terrafm.data.shards.dataset import Dataset
from terrafm.pictures.colours import class_colour
from terrafm.pictures.figure import picture

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
        legend = figure.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=min(4, len(counts)),
            fontsize=8,
            handletextpad=0.2,
            columnspacing=1.5,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def class_histogram(dataset: Dataset, config: Config, path: str | os.PathLike[str]) -> None:
    """Draws tiles per class in the dataset, and samples per class in an epoch after resampling.

    Args:
        dataset: whose tiles.
        config: of the sampling.
        path: URI of the PNG.
    """
    before = dataset.class_counts()
    after = make_plan(dataset, config).counts
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
        axes.set_yticks(y, [str(dataset.legend.get(c, c)) for c in codes], parse_math=False)
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


def _degrees(value: int, negative: str, positive: str) -> str:
    return f"{abs(value)}°{negative if value < 0 else positive if value > 0 else ''}"

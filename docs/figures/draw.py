"""Draws the pictures of the pages on resampling and on dual centering, with the project's own code.

python docs/figures/draw.py [FOLDER]: into docs/images by default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from terrafm.data.samples.plan import Plan, high_frequency_classes, resampled_counts
from terrafm.losses.centering import DualCentering

# Okabe and Ito's colours, which every kind of colour vision tells apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8A8A8A"

# An archive of 10,000 tiles in which some classes are rare, by WorldCover's codes.
CLASSES = {
    10: ("tree cover", 4100),
    40: ("cropland", 2600),
    30: ("grassland", 1500),
    80: ("water", 900),
    60: ("bare", 450),
    50: ("built-up", 300),
    90: ("wetland", 110),
    95: ("mangroves", 40),
}

PROTOTYPES, BATCH, ROUNDS = 12, 2048, 100
TEMPERATURE, ALPHA, MOMENTUM = 0.06, 0.8, 0.9


def land_cover() -> np.ndarray:
    """Class code of each tile of the archive."""
    return np.repeat(list(CLASSES), [count for _, count in CLASSES.values()])


def resampled_classes() -> Figure:
    """Share of each class in an epoch, for three exponents."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    tiles = land_cover()
    places = np.arange(len(CLASSES))
    for offset, exponent, colour in ((-0.27, 0.0, GREY), (0, 0.5, BLUE), (0.27, 1.0, ORANGE)):
        counts = resampled_counts(tiles, exponent=exponent)
        shares = [100 * counts[code] / len(tiles) for code in CLASSES]
        label = {0.0: "0: the archive", 0.5: "0.5: the default", 1.0: "1: all equal"}[exponent]
        bars = axes.bar(places + offset, shares, 0.26, color=colour, label=label)
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize=7, padding=1)
    axes.set_xticks(places, [name for name, _ in CLASSES.values()], rotation=20)
    axes.set_ylabel("share of an epoch's samples, %")
    axes.legend(title="data.resample_exponent", frameon=False)
    return figure


def repeated_tiles() -> Figure:
    """Where in an epoch the copies of some tiles stand."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    tiles = land_cover()
    epoch = Plan(tiles, seed=0, exponent=0.5).epoch(0)
    chosen = [(code, row) for code in (95, 90, 50, 40, 10) for row in _some_tiles(tiles, code)]
    for line, (code, row) in enumerate(chosen):
        at = np.flatnonzero(epoch == row) / len(epoch)
        colour = ORANGE if code in (95, 90, 50) else BLUE
        axes.scatter(at, np.full(len(at), line), color=colour, s=26)
        axes.axhline(line, color="#dddddd", linewidth=0.8, zorder=0)
    names = [f"a tile of {CLASSES[code][0]}" for code, _ in chosen]
    axes.set_yticks(range(len(chosen)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("position in the epoch (0: first sample, 1: last sample)")
    return figure


def _some_tiles(tiles: np.ndarray, code: int) -> list[int]:
    rows = np.flatnonzero(tiles == code)
    return [int(row) for row in rows[[len(rows) // 3, 2 * len(rows) // 3]]]


def _teacher_logits(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a teacher in the middle of training, (1, B, K), and which samples are frequent.

    Four of five samples are of a frequent class, whose logits are high on the first four
    prototypes; those of the rare classes are high on the next four. The rest is noise.
    """
    frequent = torch.arange(BATCH) < 0.8 * BATCH
    logits = 0.05 * torch.randn(BATCH, PROTOTYPES, generator=generator)
    logits[:, :4] += torch.where(frequent, 0.30, 0.10)[:, None]
    logits[:, 4:8] += torch.where(frequent, 0.02, 0.14)[:, None]
    return logits[None], frequent


def trained_centers() -> tuple[DualCentering, torch.Tensor, torch.Tensor]:
    """Both centers after some steps, a batch of logits, and which of its samples are frequent."""
    generator = torch.Generator().manual_seed(0)
    centering = DualCentering(PROTOTYPES, ALPHA, MOMENTUM)
    for _ in range(ROUNDS):
        logits, frequent = _teacher_logits(generator)
        centering.accumulate(logits, frequent)
        centering.update_centers()
    return centering, logits, frequent


def mean_targets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Centering -> mean target of the frequent and of the rare samples, (K,) each."""
    centering, logits, frequent = trained_centers()
    choices = {
        "no centering": torch.zeros(PROTOTYPES),
        "one center (DINO, alpha = 1)": centering.center,
        f"dual centering (alpha = {ALPHA}, the default)": None,
        "dual centering (alpha = 0.4)": 0.4 * centering.center
        + 0.6 * centering.center_high_frequency,
    }
    found = {}
    for name, center in choices.items():
        targets = (centering.centered(logits, center) / TEMPERATURE).softmax(-1)[0]
        found[name] = (targets[frequent].mean(0).numpy(), targets[~frequent].mean(0).numpy())
    return found


def dual_centering_targets() -> Figure:
    """Mean targets of frequent and of rare samples, for four ways to center."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    for axes, (name, (frequent, rare)) in zip(
        figure.subplots(4, 1, sharex=True, sharey=True), mean_targets().items(), strict=True
    ):
        _pair_of_bars(axes, frequent, rare)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("mean target")
    axes.set_xlabel("prototype")
    figure.axes[0].legend(frameon=False)
    return figure


def dual_centering_centers() -> Figure:
    """Both centers, and what is subtracted."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    centering, _, _ = trained_centers()
    both = ALPHA * centering.center + (1 - ALPHA) * centering.center_high_frequency
    places = np.arange(PROTOTYPES)
    for offset, values, colour, label in (
        (-0.27, centering.center, BLUE, "c: mean of all samples"),
        (0, centering.center_high_frequency, ORANGE, "c_h: of frequent classes"),
        (0.27, both, GREEN, "subtracted"),
    ):
        axes.bar(places + offset, values.numpy(), 0.26, color=colour, label=label)
    axes.set_xticks(places, [str(one) for one in range(1, PROTOTYPES + 1)])
    axes.set_xlabel("prototype")
    axes.set_ylabel("logit")
    axes.legend(frameon=False)
    return figure


def _pair_of_bars(axes: Axes, frequent: np.ndarray, rare: np.ndarray) -> None:
    places = np.arange(PROTOTYPES)
    axes.bar(places - 0.2, frequent, 0.38, color=BLUE, label="samples of a frequent class")
    axes.bar(places + 0.2, rare, 0.38, color=ORANGE, label="samples of rare classes")
    axes.set_xticks(places, [str(one) for one in range(1, PROTOTYPES + 1)])


PICTURES: dict[str, Callable[[], Figure]] = {
    "resampled_classes.png": resampled_classes,
    "repeated_tiles.png": repeated_tiles,
    "dual_centering_centers.png": dual_centering_centers,
    "dual_centering_targets.png": dual_centering_targets,
}


def draw(folder: Path) -> None:
    """Draws all pictures into a folder."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, picture in PICTURES.items():
            picture().savefig(folder / name, dpi=150, metadata={"Software": None})


def frequent_classes() -> tuple[str, ...]:
    """The classes that the second center averages over, with the default resampling."""
    tiles = land_cover()
    return tuple(CLASSES[code][0] for code in high_frequency_classes(tiles))


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "images"
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

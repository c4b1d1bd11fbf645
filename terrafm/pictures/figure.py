"""How all pictures of this project look, and where they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import matplotlib as mpl
from matplotlib.figure import Figure

from terrafm.storage import write_bytes

# Okabe and Ito's colours, told apart with every kind of colour vision.
SAFE_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#555555",
)
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def picture(path: str | os.PathLike[str], size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of so many inches that is written as a PNG when the block ends.

    Args:
        path: URI of the PNG.
        size: width and height, inches at 130 dots.
    """
    # A figure without pyplot: no window, no global state, the same in every thread.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=130)
        yield figure
        content = BytesIO()
        # Without a date or version inside, the same picture is the same file.
        figure.savefig(content, format="png", metadata={"Software": None})
    write_bytes(path, content.getvalue())

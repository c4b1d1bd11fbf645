"""A contact sheet: a tile, and what looks like it, as pictures with captions."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.colours import bare, class_colour, stretch, stretch_limits
from terrafm.pictures.figure import picture
from terrafm.search.preview import Preview, Previews
from terrafm.search.similar import place_of, time_of

# The query takes two columns and two rows of five columns: 16 neighbours fill four rows.
_COLUMNS, _QUERY = 5, 2
MOST_PICTURES = 96
# Inches: side of a picture, caption below it, between pictures, edge of the sheet, head.
_SIDE, _CAPTION, _GAP, _EDGE, _HEAD = 1.9, 0.5, 0.17, 0.24, 0.66
_STRIP = 0.05
# Enough dots for the largest picture; a tile of more pixels is drawn from every second, third ...
_LARGEST = 640
_INK, _GREY, _EMPTY = "#1f262d", "#68737d", "#eef1f4"


def draw_contact_sheet(
    result: dict[str, Any], previews: Previews, path: str | os.PathLike[str]
) -> None:
    """Draws a tile and its neighbours.

    Pictures of one sensor share one stretch, so that bright and dark can be compared. Of many
    neighbours the first `MOST_PICTURES` are drawn.

    Args:
        result: of `find_similar`.
        previews: where the pictures come from.
        path: URI of the PNG.

    Raises:
        TerraFMError: pixels cannot be read.
    """
    shown = result["neighbours"][:MOST_PICTURES]
    pictures = [_small(previews.preview(tile)) for tile in (result["query"], *shown)]
    limits = _common_limits(pictures)
    colours = _class_colours([result["query"], *shown])
    columns = _QUERY + min(_COLUMNS - _QUERY, max(1, -(-len(shown) // _QUERY)))
    beside = (columns - _QUERY) * _QUERY
    rows = _QUERY + -(-max(0, len(shown) - beside) // columns)
    width = 2 * _EDGE + columns * (_SIDE + _GAP) - _GAP
    height = _HEAD + rows * (_SIDE + _CAPTION + _GAP) - _GAP + _EDGE
    with picture(path, (width, height)) as figure:
        _draw_head(
            figure, result, len(shown), {preview.modality for preview in pictures if preview}
        )
        big = _QUERY * _SIDE + (_QUERY - 1) * _GAP
        axis = _square(figure, _EDGE, _HEAD, big)
        _draw_preview(axis, pictures[0], limits, colours.get(result["query"]["land_cover"]))
        _caption_query(axis, result["query"])
        for number, (tile, preview) in enumerate(zip(shown, pictures[1:], strict=True)):
            row, column = _slot(number, columns, beside)
            axis = _square(
                figure,
                _EDGE + column * (_SIDE + _GAP),
                _HEAD + row * (_SIDE + _CAPTION + _GAP),
                _SIDE,
            )
            _draw_preview(axis, preview, limits, colours.get(tile["land_cover"]))
            _caption_neighbour(axis, tile)


def _slot(number: int, columns: int, beside: int) -> tuple[int, int]:
    """Row and column of a neighbour: beside the query first, then below it."""
    if number < beside:
        row, column = divmod(number, columns - _QUERY)
        return row, column + _QUERY
    row, column = divmod(number - beside, columns)
    return row + _QUERY, column


def _square(figure: Figure, left: float, top: float, side: float) -> Axes:
    """An axis of so many inches, counted from the top left."""
    width, height = figure.get_size_inches()
    box = (left / width, 1 - (top + side) / height, side / width, side / height)
    axis: Axes = figure.add_axes(box)
    bare(axis)
    return axis


def _draw_preview(
    axis: Axes,
    preview: Preview | None,
    limits: Mapping[str, NDArray[np.float64]],
    colour: str | None,
) -> None:
    axis.set_facecolor(_EMPTY)
    if preview is None:
        axis.text(0.5, 0.5, "no picture", ha="center", va="center", color=_GREY, fontsize=8,
                  transform=axis.transAxes)  # fmt: skip
    else:
        axis.imshow(stretch(preview.image, limits[preview.modality]), interpolation="antialiased",
                    aspect="auto")  # fmt: skip
    if colour is not None:
        strip = _inches(axis, _STRIP)
        axis.add_patch(
            Rectangle((0, -strip), 1, strip, transform=axis.transAxes, facecolor=colour,
                      edgecolor="none", clip_on=False)
        )  # fmt: skip


def _inches(axis: Axes, length: float) -> float:
    """A length on the sheet as a share of the axis' height."""
    bounds = axis.get_window_extent()
    return float(length * axis.figure.dpi / bounds.height)


def _caption_neighbour(axis: Axes, tile: dict[str, Any]) -> None:
    lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        (f"{tile['rank']}", f"{tile['similarity']:.3f}", {"color": _INK, "fontweight": "bold"}),
        (_shortened(tile["tile_id"], 22), time_of(tile), {"color": _INK}),
        (_shortened(tile["land_cover_name"] or place_of(tile), 22), _far(tile), {"color": _GREY}),
    )
    for number, (left, right, style) in enumerate(lines):
        y = -_inches(axis, _STRIP + 0.06 + 0.135 * number)
        size = 8 if number == 0 else 6.8
        for x, text, side in ((0, left, "left"), (1, right, "right")):
            axis.text(x, y, text, ha=side, va="top", fontsize=size, transform=axis.transAxes,
                      parse_math=False, **style)  # fmt: skip


def _caption_query(axis: Axes, tile: dict[str, Any]) -> None:
    facts = [place_of(tile), time_of(tile), tile["land_cover_name"] or ""]
    lines: tuple[tuple[str, float, dict[str, Any]], ...] = (
        (_shortened(tile["tile_id"], 40), 12, {"color": _INK, "fontweight": "bold"}),
        ("   ".join(filter(None, facts)), 8.5, {"color": _GREY}),
    )
    for number, (text, size, style) in enumerate(lines):
        y = -_inches(axis, _STRIP + 0.1 + 0.24 * number)
        axis.text(0, y, text, ha="left", va="top", fontsize=size, transform=axis.transAxes,
                  parse_math=False, **style)  # fmt: skip


def _draw_head(figure: Figure, result: dict[str, Any], count: int, sensors: set[str]) -> None:
    width, height = figure.get_size_inches()
    left, right = _EDGE / width, 1 - _EDGE / width
    found = len(result["neighbours"])
    title = f"The {count} most similar tiles" if count > 1 else "The most similar tile"
    note = f"first {count} of {found}, " if found > count else ""
    names = [SENSOR_TITLES[name] for name in SENSOR_TITLES if name in sensors]
    figure.text(left, 1 - 0.2 / height, title, fontsize=13, fontweight="bold", color=_INK, va="top")
    figure.text(
        right, 1 - 0.2 / height,
        f"{note}of {result['tiles']:,} by {result['model']}\n{', '.join(names)}",
        fontsize=7.5, color=_GREY, va="top", ha="right", linespacing=1.5, parse_math=False,
    )  # fmt: skip


def _small(preview: Preview | None) -> Preview | None:
    """A preview of no more pixels than can be seen: a hundred of them are kept."""
    if preview is None:
        return None
    step = max(1, min(preview.image.shape[:2]) // _LARGEST)
    return Preview(preview.modality, preview.image[::step, ::step])


def _common_limits(previews: list[Preview | None]) -> dict[str, NDArray[np.float64]]:
    """Modality -> (2, 3) stretch over all pictures of it."""
    pixels: dict[str, list[NDArray[np.float32]]] = {}
    for preview in previews:
        if preview is not None:
            pixels.setdefault(preview.modality, []).append(
                preview.image[::4, ::4].reshape(1, -1, 3)
            )
    together = {name: np.concatenate(parts, axis=1) for name, parts in pixels.items()}
    return {name: _limits(image, name) for name, image in together.items()}


def _limits(image: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    limits = stretch_limits(image, name)
    valid = image[np.isfinite(image).all(-1)]
    if name == "s2_l1c" and len(valid):
        # Seen through the air all ground is blue: what the darkest pixels have is the air's.
        low = np.percentile(valid, 2, axis=0)
        limits = np.stack([low, low + (limits[1] - low).max()])
    return limits


def _class_colours(tiles: list[dict[str, Any]]) -> dict[int, str]:
    codes = sorted({tile["land_cover"] for tile in tiles if tile["land_cover"] is not None})
    return {code: class_colour(code, number) for number, code in enumerate(codes)}


def _far(tile: dict[str, Any]) -> str:
    kilometres = tile["distance_km"]
    return f"{kilometres:,.0f} km" if kilometres >= 10 else f"{kilometres:.1f} km"


def _shortened(text: str, length: int) -> str:
    """A long name without its middle: names of one archive differ at their ends."""
    if len(text) <= length:
        return text
    head = length // 3
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"

"""`terrafm search`: what looks like a tile."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from terrafm import api
from terrafm.api.embeddings import draw_found
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage.faults import one_line
from terrafm.terminal import JsonOption, QuietOption, console, errors, show

_SHEET = "contact_sheet.png"


def search(
    uri: Annotated[
        str, typer.Argument(metavar="EMBEDDINGS", help="URI of what terrafm embed wrote.")
    ],
    tile: Annotated[str | None, typer.Option("--tile", metavar="ID", help="What to find.")] = None,
    point: Annotated[
        str | None,
        typer.Option("--point", metavar="LON,LAT", help="Or the tile there, degrees."),
    ] = None,
    count: Annotated[int, typer.Option("-k", help="Number of neighbours.")] = 16,
    output: Annotated[
        str | None,
        typer.Option("--output", help=f"URI of the contact sheet; by default {_SHEET}."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="URI of the pixels, where they no longer lie where they did."),
    ] = None,
    index: Annotated[
        bool | None,
        typer.Option(
            "--index/--exact",
            help="Look through an index, built once and kept there; or at all embeddings.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the tiles that are most similar to one: a table, and a contact sheet of pictures.

    Its embedding is compared with all others by cosine. Pictures come from the dataset or the
    GeoTIFFs that were embedded.
    """
    place = None if point is None else _place(point)
    result = api.search(uri, tile=tile, point=place, k=count, index=index)
    # What was found is shown whether or not its pictures can be drawn.
    fault = _draw(uri, result, output or _SHEET, data)
    result["contact_sheet"] = None if fault else output or _SHEET
    show(result, as_json)
    if fault and (output or data):
        raise fault
    if fault:
        errors.print(f"terrafm: {one_line(fault)}")
    elif not as_json:
        console.tell(f"\nwrote {result['contact_sheet']}")


def _draw(uri: str, result: dict[str, Any], path: str, data: str | None) -> Exception | None:
    try:
        draw_found(uri, result, path, data)
    except (TerraFMError, OSError) as error:
        return error
    return None


def _place(text: str) -> tuple[float, float]:
    try:
        longitude, latitude = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--point {text} is not a longitude and a latitude in degrees, such as 15.2,45.1"
        ) from None
    return longitude, latitude

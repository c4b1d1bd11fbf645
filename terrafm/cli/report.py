"""`terrafm report`."""

from __future__ import annotations

from typing import Annotated

import typer

from terrafm import api, early
from terrafm.cli.options import SetOption
from terrafm.config import load_config
from terrafm.terminal import console, errors
from terrafm.units import human_bytes


def report(
    folders: Annotated[
        list[str], typer.Argument(help="URIs of runs, datasets, embeddings or sweeps.")
    ],
    output: Annotated[str, typer.Option("--output", help="URI of the page, FILE.html.")],
    watch: Annotated[
        int | None,
        typer.Option(
            "--watch", min=5, help="Write it again every so many seconds while a run goes on."
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures", help="Show what each run's best checkpoint sees; loads the model."
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", help="URI of the tiles, where they no longer lie where they did."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write a page about runs, datasets, embeddings or sweeps (docs/report.md)."""
    if watch is None:
        page = api.report(folders, output, pictures=pictures, data=data, set=overrides)
        size = human_bytes(page.bytes)
        console.print(f"wrote {output}, {size}", soft_wrap=True, highlight=False)
        return
    config = load_config(None, overrides or [])
    targets = early.check_report(folders, output, data)
    from terrafm.report.kinds import Wanted
    from terrafm.report.writing import watch as keep_writing

    message = f"writing {output} every {watch} s; Ctrl+C ends it, and the page stays"
    console.print(message, soft_wrap=True, highlight=False)
    wanted = Wanted(config, pictures, data)
    try:
        keep_writing(targets, wanted, output, watch, told=lambda size: None)
    except KeyboardInterrupt:
        errors.print(f"terrafm: no longer writing {output}")
        return
    console.print(f"wrote {output}: nothing goes on any more", soft_wrap=True, highlight=False)

"""`terrafm report`."""

from __future__ import annotations

from typing import Annotated

import typer

from terrafm import api, early
from terrafm.cli.options import SetOption
from terrafm.config import load_config
from terrafm.terminal import JsonOption, QuietOption, console, errors
from terrafm.terminal import report as print_result
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    overrides: SetOption = None,
) -> None:
    """Write a page about runs, datasets, embeddings or sweeps (docs/report.md)."""
    if watch is None:
        page = api.report(folders, output, pictures=pictures, data=data, set=overrides)
        _tell(output, page.bytes, f"wrote {output}, {human_bytes(page.bytes)}", as_json)
        return
    config = load_config(None, overrides or [])
    targets = early.check_report(folders, output, data)
    console.say(f"writing {output} every {watch} s; Ctrl+C ends it, and the page stays")
    from terrafm.report.kinds import Wanted
    from terrafm.report.writing import watch as keep_writing

    sizes = [0]
    try:
        keep_writing(targets, Wanted(config, pictures, data), output, watch, told=sizes.append)
    except KeyboardInterrupt:
        errors.print(f"terrafm: no longer writing {output}")
        return
    _tell(output, sizes[-1], f"wrote {output}: nothing goes on any more", as_json)


def _tell(output: str, size: int, text: str, as_json: bool) -> None:
    print_result({"output": output, "bytes": size}, as_json, lambda _: text)

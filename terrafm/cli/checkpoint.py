"""`terrafm checkpoint`: what a user does with the checkpoints of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from terrafm import early
from terrafm.errors import TerraFMError
from terrafm.progress import progress_bar, working
from terrafm.terminal import JsonOption, QuietOption, console, report

checkpoint_app = typer.Typer(
    help="List, verify and average the checkpoints of runs.", no_args_is_help=True
)


@checkpoint_app.command("list")
def list_command(
    uri: Annotated[str, typer.Argument(help="URI of a run's folder, or of its checkpoints.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a run's checkpoints and why each is kept.

    The state is judged by the files' sizes and by state.json; `verify` reads everything.
    """
    early.check_checkpoints(uri)
    with working(console, f"looking at the checkpoints of {uri}"):
        from terrafm.train.checkpoints.inventory import list_run, render_list

        found = list_run(uri)
    report(found, as_json, render_list)


@checkpoint_app.command("verify")
def verify_command(
    uri: Annotated[
        str, typer.Argument(help="URI of a checkpoint (or RUN/checkpoints/best), or of a run.")
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare checkpoints with their checksums.

    Every file is read; exit 1 names one that is damaged.
    """
    early.check_checkpoints(uri)
    with progress_bar(console, "checkpoints", f"reading every file of {uri}") as advance:
        from terrafm.train.checkpoints.inventory import render_verify, summary, verify

        result = verify(uri, progress=advance)
    report(result, as_json, render_verify)
    if result["faults"]:
        raise TerraFMError(summary(result))


@checkpoint_app.command("average")
def average_command(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help="URIs of two or more, of the same model."),
    ],
    output: Annotated[str, typer.Option("--output", help="URI of the folder to write.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Average the weights of checkpoints.

    Students and teachers are added up in float64. The result is a folder like a checkpoint:
    `terrafm export --checkpoint OUTPUT` makes weights of its teacher, which `terrafm evaluate`
    and `terrafm.load_model` take. It has no optimizer, so `terrafm pretrain` does not go on from
    it; start from the exported weights with model.init.
    """
    early.check_average(checkpoints)
    with working(console, f"averaging {len(checkpoints)} checkpoints"):
        from terrafm.train.checkpoints.average import average_checkpoints, describe

        result = average_checkpoints(checkpoints, output)
    report(result, as_json, describe)

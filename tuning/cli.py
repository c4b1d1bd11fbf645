"""`terrafm sweep`: the verb, found by the command line through its entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from terrafm.cli import early
from terrafm.config import load_config
from terrafm.storage import check_no_file
from terrafm.terminal import console


def sweep(
    config: Annotated[str, typer.Option("--config", help="Recipe or YAML file.")],
    data: Annotated[str, typer.Option("--data", help="URI of a dataset made by ingest.")],
    output: Annotated[str, typer.Option("--output", help="URI of the folder to write.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep that lies in --output.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable."
        ),
    ] = None,
) -> None:
    """Pretrain with many settings, and compare what the encoders are worth (docs/sweeps.md)."""
    tree = load_config(config, overrides or [])
    early.check_dataset(data, tree.data.modalities)
    check_no_file(output)
    from tuning.sweep import Sweep, describe

    console.print(describe(Sweep(tree, data, output).run(resume)), soft_wrap=True, highlight=False)

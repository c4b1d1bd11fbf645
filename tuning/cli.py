"""`terrafm sweep`: the verb, found by the command line through its entry point."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from terrafm import early
from terrafm.cli.options import ConfigOption, DataOption, OutputOption, SetOption
from terrafm.config import load_config
from terrafm.report.blocks import Section
from terrafm.report.kinds import Kind, Target, Wanted, register
from terrafm.storage import check_no_file
from terrafm.terminal import JsonOption, QuietOption, console
from terrafm.terminal import report as print_result


def _is_sweep(names: Collection[str]) -> bool:
    return "sweep.yaml" in names


def _sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    from tuning.report import report_sections

    return report_sections(targets, wanted)


# With the verb `report` learns what a sweep is: the library imports nothing from here.
register(Kind("sweep", "sweeps", _is_sweep, _sections))


def sweep(
    config: ConfigOption,
    data: DataOption,
    output: OutputOption,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep that lies in --output.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    overrides: SetOption = None,
) -> None:
    """Pretrain with many settings, and compare what the encoders are worth (docs/sweeps.md)."""
    tree = load_config(config, overrides or [])
    early.check_dataset(data, tree.data.modalities)
    check_no_file(output)
    console.say(f"a sweep of {config} on {data} in {output}")
    from tuning.sweep import Sweep, describe

    result = Sweep(tree, data, output).run(resume)
    print_result(asdict(result), as_json, lambda _: describe(result))

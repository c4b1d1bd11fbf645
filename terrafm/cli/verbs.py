"""The command line: one verb per thing a user does."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Annotated

import typer

from terrafm import api
from terrafm.cli.checkpoint import checkpoint_app
from terrafm.cli.cluster import cluster_app, doctor
from terrafm.cli.embed import embed
from terrafm.cli.ending import (
    TerminatedError,
    command_to_go_on,
    ends_by_sigterm,
    was_interrupted,
)
from terrafm.cli.evaluate import evaluate_app
from terrafm.cli.jobs import jobs_app, submit
from terrafm.cli.options import ConfigOption, DataOption, OutputOption, SetOption
from terrafm.cli.report import report as write_report
from terrafm.cli.search import search
from terrafm.config import settings
from terrafm.data.sources.registry import source_names
from terrafm.errors import TerraFMError, UsageError
from terrafm.export.request import ExportFormat, Network
from terrafm.modalities import SENTINEL, check_plugins
from terrafm.storage import check_no_file
from terrafm.storage.addresses import check_address
from terrafm.storage.faults import one_line
from terrafm.terminal import (
    JsonOption,
    PlainFormatter,
    QuietOption,
    console,
    errors,
    report,
    show,
)

# Each verb imports what it needs when it runs: torch and Ray take seconds to load, and --help or
# a mistyped key should answer at once.

app = typer.Typer(
    help="Pretrain TerraFM, from satellite archive to usable weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(cluster_app, name="cluster")
app.add_typer(jobs_app, name="jobs")


def _settings_help(*without: str) -> str:
    """The configuration keys of a verb, for --help: those of all sections but some."""
    # The backspace keeps click from refilling the lines.
    rows = [
        f"  {key} ({kind}) = {json.dumps(default)}\n      {description}"
        for key, kind, default, description in settings()
        if key.partition(".")[0] not in without
    ]
    return "\b\nKeys of --set and YAML, with their defaults:\n" + "\n".join(rows)


_TRAINING = ("model", "head", "optim", "train", "validation", "tune")


@app.command()
def demo(
    output: OutputOption = "terrafm-demo",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Walk the whole road on a small synthetic Earth, in minutes on a laptop."""
    # Before all that takes seconds to load.
    check_no_file(output)
    console.say(f"TerraFM demo in {output}\n")
    from terrafm.demo import run_demo

    result = run_demo(output, console)
    console.say("\n")
    report(result.summary, as_json, lambda _: result.tables)


@app.command(epilog=_settings_help(*_TRAINING, "loss", "data"))
def ingest(
    source: Annotated[
        str,
        typer.Option(help=f"Layout of the archive: {', '.join(source_names())}, or module:Class."),
    ],
    input_uri: Annotated[str, typer.Option("--input", help="URI of the archive.")],
    output: OutputOption,
    worldcover: Annotated[
        str | None, typer.Option(help="ESA WorldCover folder or bucket, for tiles without one.")
    ] = None,
    legend: Annotated[
        str | None, typer.Option(help="YAML that maps the codes of the archive's land cover.")
    ] = None,
    climate: Annotated[
        str | None, typer.Option(help="Raster of climate zones in EPSG:4326, any integer codes.")
    ] = None,
    tile_size: Annotated[
        int, typer.Option(help="Side of a tile on the finest grid, pixels.")
    ] = 534,
    modalities: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(SENTINEL),
    grid: Annotated[
        str | None,
        typer.Option(help="Cells of scenes: mgrs (default), major-tom, or utm:PIXELS of 10 m."),
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(help="Of scenes: WEST,SOUTH,EAST,NORTH in degrees.")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="Of scenes: GeoJSON file of polygons in degrees.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Of scenes: START/END, such as 2021-05-01/2021-09-30.")
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option(help="Who signs addresses of STAC: planetary-computer, or an https:// URL."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the tiles to the complete dataset in --output.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    overrides: SetOption = None,
) -> None:
    """Cut an archive into tiles and pack them into Parquet shards."""
    outcome = api.ingest(
        source,
        input_uri,
        output,
        worldcover=worldcover,
        legend=legend,
        climate=climate,
        tile_size=tile_size,
        modalities=modalities,
        grid=grid,
        bbox=bbox,
        geometry=geometry,
        time=time,
        sign=sign,
        append=append,
        set=overrides,
    )
    report(outcome.as_dict(), as_json, lambda _: outcome.render())


@app.command(epilog=_settings_help(*_TRAINING, "ingest"))
def inspect(
    uri: Annotated[str, typer.Argument(help="URI of a dataset made by ingest.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    overrides: SetOption = None,
) -> None:
    """Show what a dataset holds and how it will be resampled."""
    show(api.inspect(uri, set=overrides), as_json)


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="URI of a dataset made by ingest.")],
    version: Annotated[int | None, typer.Option(help="By default the newest.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read a whole dataset and compare it with its checksums; exit 1 where anything is wrong."""
    result = api.verify(uri, version=version)
    show(result, as_json)
    if result["faults"]:
        from terrafm.data.shards.verify import summary

        raise TerraFMError(summary(result))


@app.command()
def tile(
    uri: Annotated[str, typer.Argument(help="URI of a dataset made by ingest.")],
    tile_id: Annotated[str, typer.Argument(help="Id of the tile.")],
    output: OutputOption,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one tile as GeoTIFFs, one for each sensor and ground sampling distance."""
    written = api.tile(uri, tile_id, output)
    report({"written": written}, as_json, lambda _: "\n".join(f"wrote {uri}" for uri in written))


@app.command(epilog=_settings_help("ingest", "tune"))
def pretrain(
    config: ConfigOption,
    data: DataOption,
    output: OutputOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost.")] = False,
    as_json: JsonOption = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps into the run's profile/.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="Go on with a run of another length, on the schedules of this one."
        ),
    ] = False,
    quiet: QuietOption = False,
    overrides: SetOption = None,
) -> None:
    """Pretrain, or go on with the run that lies in --output."""
    if dry_run:
        figures = api.pretrain(
            config, data, output, dry_run=True, profile=profile, extend=extend, set=overrides
        )
        show(figures, as_json)
        return
    result = api.pretrain(config, data, output, profile=profile, extend=extend, set=overrides)
    report(asdict(result), as_json, lambda _: result.render())


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Option(
            help="URI of a checkpoint's folder; RUN/checkpoints/best: the best. Or of weights."
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="URI of the weight file or its folder.")],
    file_format: Annotated[ExportFormat, typer.Option("--format", help="What is written.")],
    network: Annotated[Network, typer.Option("--model", help="Which network.")] = Network.TEACHER,
    modality: Annotated[
        str | None,
        typer.Option(
            help="Of a graph or TerraTorch's backbone; all that torchgeo-bench sees; PANGAEA's "
            "optical bands. Of released, s2_l2a: for Level-2A in the paper's inference file, "
            "which takes any 12 bands for Level-1C."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of a graph's images, pixels; as trained by default.")
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Of the weights: hf's card, torchgeo.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="What evaluate --json printed, for hf's model card.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint's encoder as weights or a graph, and say how to load it."""
    done = api.export(
        checkpoint,
        output,
        file_format,
        model=network,
        modality=modality,
        image_size=image_size,
        license=license_name,
        scores=scores,
    )
    lines = [*(f"wrote {uri}" for uri in done.written), "\nLoad it with:\n", done.snippet]
    found = {"written": done.written, "load": done.snippet}
    report(found, as_json, lambda _: "\n".join(lines))


app.command()(embed)
app.command()(search)
app.command("report", epilog=_settings_help(*_TRAINING, "ingest"))(write_report)
app.command()(doctor)
# What it does not know is the other verb's.
app.command(context_settings={"ignore_unknown_options": True})(submit)


def _add_outer_verbs() -> None:
    """Verbs of packages beside the library, by the entry points they are installed with."""
    for verb in entry_points(group="terrafm.verbs"):
        app.command(verb.name, epilog=_settings_help("ingest"))(verb.load())


_add_outer_verbs()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; ends the process with 0 done, 1 failed, 2 wrong usage, 143 by SIGTERM."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("terrafm: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Of an earlier command of this process, as in tests: --quiet and --json are for one.
    console.results_only, console.of_a_command = False, True
    logging.getLogger().setLevel(logging.WARNING)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with ends_by_sigterm():
            for word in words:
                check_address(word)
            check_plugins()
            app(args=None if arguments is None else list(arguments), prog_name="terrafm")
    except TerminatedError:
        _tell_how_to_go_on(words)
        errors.print("terrafm: ended by SIGTERM; what is done stays")
        raise
    except SystemExit as end:
        if was_interrupted(end):
            _tell_how_to_go_on(words)
        raise
    except TerraFMError as error:
        errors.print(f"terrafm: error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        # A disk that refuses: no permission, a file where a folder should be, no room.
        errors.print(f"terrafm: error: {one_line(error)}")
        sys.exit(UsageError.exit_code)
    finally:
        console.of_a_command = False


def _tell_how_to_go_on(words: Sequence[str]) -> None:
    command = command_to_go_on(words)
    if command is not None:
        errors.print(f"terrafm: go on with: {command}")

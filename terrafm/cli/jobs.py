"""`terrafm submit` and `terrafm jobs`: verbs on a cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from terrafm import early
from terrafm.errors import UsageError
from terrafm.terminal import JsonOption, QuietOption, console, errors, report

jobs_app = typer.Typer(help="List, follow and stop the jobs of a cluster.", no_args_is_help=True)

AddressOption = Annotated[
    str,
    typer.Option(
        "--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, such as http://127.0.0.1:8265.",
    ),
]  # fmt: skip
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="VERB ...", help="A verb and its own arguments.")
    ],
    address: AddressOption,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Follow what the job prints.")
    ] = True,
    working_dir: Annotated[
        Path, typer.Option(help="Folder whose code and configuration files travel with the job.")
    ] = Path(),
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter on the head; by default the one that its Ray runs with."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the files that would be sent.")
    ] = False,
) -> None:
    """Run a verb as a job on a cluster; given again, the same run goes on.

    The token is taken from RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or
    ~/.ray/auth_token. Ctrl-C asks whether to stop the job or only to stop watching.
    """
    from terrafm.jobs.arguments import read_command

    command = read_command(context.find_root().command, words, working_dir)
    early.check_dashboard(address)
    _tell(f"asking the cluster at {address}")
    from terrafm.jobs.client import JobServer
    from terrafm.jobs.follow import follow
    from terrafm.jobs.submit import submit as run_submit

    server = JobServer(address)
    job = run_submit(server, command, working_dir, python, _tell, dry_run=dry_run)
    if job is None:
        return
    _tell(f"submitted {job}")
    if watch:
        sys.exit(follow(server, job))
    _tell(f"follow it with {server.command('follow', job)}")


@jobs_app.command("list")
def list_command(
    address: AddressOption, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Show all jobs, the newest first."""
    early.check_dashboard(address)
    console.say(f"asking the cluster at {address}")
    from terrafm.jobs.client import JobServer, as_dict

    report({"jobs": [as_dict(job) for job in JobServer(address).jobs()]}, as_json, render_jobs)


@jobs_app.command("status")
def status_command(
    job: JobArgument,
    address: AddressOption,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one job."""
    early.check_dashboard(address)
    console.say(f"asking the cluster at {address}")
    from terrafm.jobs.client import JobServer, as_dict

    report(as_dict(JobServer(address).job(job)), as_json, _render_job)


@jobs_app.command("logs")
def logs_command(
    job: JobArgument,
    address: AddressOption,
    watch: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print what a job has printed; Ctrl-C while following asks, as submit does."""
    if watch and as_json:
        raise UsageError("--json prints what there is, once: leave out --follow")
    early.check_dashboard(address)
    if console.shows_work:
        # Not among the lines of the job.
        _tell(f"asking the cluster at {address}")
    from terrafm.jobs.client import JobServer
    from terrafm.jobs.follow import follow
    from terrafm.jobs.shown import clean

    server = JobServer(address)
    if watch:
        server.job(job)
        sys.exit(follow(server, job))
    text = clean(server.logs(job))
    if as_json:
        report({"job": job, "logs": text}, as_json, str)
    else:
        # As it is: no line is too long for a log.
        sys.stdout.write(text)


@jobs_app.command("stop")
def stop_command(
    job: JobArgument,
    address: AddressOption,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stop a job with all its processes; what it has written stays, and can go on."""
    early.check_dashboard(address)
    console.say(f"asking the cluster at {address}")
    from terrafm.jobs.client import JobServer

    stopped = JobServer(address).stop(job)
    if as_json:
        report({"job": job, "stopped": stopped}, as_json, str)
    elif not console.results_only:
        _tell(f"{job} was stopped" if stopped else f"{job} had ended before")


def _tell(text: str) -> None:
    # Beside the job's own output.
    errors.print(f"terrafm: {text}")


def render_jobs(result: dict[str, Any]) -> Table:
    """One job a row, the newest first."""
    table = Table(box=None)
    # A job is named to the other commands: in a narrow terminal the last column gives way.
    for name in ("job", "status", "started"):
        table.add_column(name, no_wrap=True)
    table.add_column("output", overflow="fold")
    for job in result["jobs"]:
        table.add_row(job["id"], job["status"], _clock(job["started"]), job["output"] or "")
    return table


def _render_job(job: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in job.items():
        shown = _clock(value) if name in ("started", "ended") else value
        if shown not in (None, ""):
            table.add_row(name.replace("_", " "), str(shown))
    return table


def _clock(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))

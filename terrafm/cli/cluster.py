"""`terrafm cluster` and `terrafm doctor`: a cluster on this machine, and a check of any."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafm.clusters.findings import FAULT, WARNING, Finding
from terrafm.errors import TerraFMError, UsageError
from terrafm.progress import working
from terrafm.shell import quoted
from terrafm.storage import resolve
from terrafm.terminal import JsonOption, QuietOption, console, report

cluster_app = typer.Typer(
    help="Start, describe and end a Ray cluster on this machine.", no_args_is_help=True
)


_STYLES = {WARNING: "yellow", FAULT: "bold red"}


@cluster_app.command("up")
def up_command(
    local: Annotated[bool, typer.Option("--local", help="On this machine, loopback only.")] = False,
    workers: Annotated[int, typer.Option(help="Worker nodes beside the head.")] = 2,
    cpus: Annotated[int, typer.Option(help="Logical CPUs of each worker node.")] = 2,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Start a head and workers here, with a token of their own; they stay until `down`."""
    if not local:
        raise UsageError("terrafm starts clusters with --local only: for others cluster/README.md")
    with working(console, "starting head and workers"):
        from terrafm.clusters.local import up

        cluster = up(workers, cpus)
    result = {
        "address": cluster.address,
        "dashboard_url": cluster.dashboard_url,
        "token_path": cluster.token_path,
        "workers": workers,
    }
    report(result, as_json, _render_up)


@cluster_app.command("status")
def status_command(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Describe the cluster on this machine."""
    from terrafm.clusters.local import status

    report(status(), as_json, _render_status)


@cluster_app.command("down")
def down_command(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """End the cluster on this machine, with all jobs on it."""
    with working(console, "ending the cluster"):
        from terrafm.clusters.local import down

        ended = down()
    report({"ended_processes": ended}, as_json, lambda found: f"ended {ended} processes")


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Examine a running cluster (docs/security.md).")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="Its dashboard; by default that of `cluster up`."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="URI", help="Prefix to write, read, list and delete a file in."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check this machine, or who can reach a cluster; exit 1 where anything is at fault."""
    findings = []
    with working(console, "examining the cluster" if cluster else "examining this machine"):
        for finding in _examine(cluster, address, store):
            findings.append(finding)
            if not as_json:
                style = _STYLES.get(finding.level, "")
                text = Text(f"{finding.level:<8}{finding.text}", style=style)
                console.print(text, soft_wrap=True, highlight=False)
    if as_json:
        sys.stdout.write(json.dumps({"findings": [asdict(one) for one in findings]}) + "\n")
    if faults := sum(finding.level == FAULT for finding in findings):
        raise TerraFMError(f"{faults} of {len(findings)} checks failed")


def _examine(cluster: bool, address: str | None, store: str | None) -> Iterator[Finding]:
    if not cluster:
        if address is not None:
            raise UsageError("--address is that of a cluster: add --cluster")
        if store is not None:
            # Before the first line: a name that is none.
            resolve(store)
        from terrafm.clusters.machine import examine_machine

        return examine_machine(store)
    if store is not None:
        raise UsageError("--store is for this machine: leave out --cluster")
    from terrafm.clusters.doctor import examine

    return examine(address)


def _render_up(cluster: dict[str, Any]) -> str:
    return (
        f"a head and {cluster['workers']} workers run, dashboard {cluster['dashboard_url']}\n\n"
        f"export RAY_AUTH_TOKEN_PATH={quoted(cluster['token_path'])}\n"
        f"terrafm submit VERB ... --address {quoted(cluster['dashboard_url'])}"
    )


def _render_status(status: dict[str, Any]) -> RenderableType:
    head = Table(show_header=False, box=None)
    for name in ("address", "dashboard_url", "token_path"):
        head.add_row(name.replace("_", " "), status[name])
    nodes = Table("node", "alive", "address", "CPUs", "id", box=None)
    for node in status["nodes"]:
        alive = "yes" if node["alive"] else "no"
        nodes.add_row(node["name"], alive, node["address"], f"{node['cpus']:g}", node["node_id"])
    return Group(head, nodes)

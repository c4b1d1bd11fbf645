"""Checks a running cluster against docs/security.md, from where the user stands."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from terrafm.clusters import state
from terrafm.clusters.dashboard import Dashboard, is_loopback
from terrafm.clusters.findings import FAULT, OK, WARNING, Finding
from terrafm.clusters.sockets import Socket, listening, shown_in
from terrafm.clusters.token import PATH_VARIABLE, Token, find_token, read_token
from terrafm.clusters.versions import differences, own_versions
from terrafm.errors import TerraFMError, UsageError
from terrafm.shell import command_line

# Ways into a cluster, each harmless without a credential: nothing is submitted or stopped.
GUARDED = (
    ("GET", "/api/version"),
    ("GET", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("GET", "/nodes?view=summary"),
    ("GET", "/api/cluster_status"),
    ("GET", "/api/v0/actors"),
    ("GET", "/api/v0/logs"),
    ("GET", "/api/packages/gcs/none.zip"),
    ("GET", "/api/serve/applications/"),
    ("GET", "/timezone"),
)
# Wrong on purpose.
_NO_TOKEN = "no-such-token"  # nosec B105


def examine(address: str | None) -> Iterator[Finding]:
    """Checks a cluster.

    Args:
        address: URL of its dashboard; None for the cluster on this machine.

    Yields:
        A finding for each check. Sockets, and what only shows on a node, are checked where the
        cluster is this machine's.

    Raises:
        UsageError: there is no cluster, or nobody answers.
    """
    local = state.read()
    if address is None:
        if local is None or local.keeper is None or not local.dashboard_url:
            raise UsageError("no local cluster runs: name another's dashboard with --address URL")
        token = Token(read_token(Path(local.token_path)), local.token_path)
        dashboard = Dashboard(local.dashboard_url, token)
    else:
        dashboard = Dashboard(address, find_token())
    is_local = local is not None and dashboard.url == local.dashboard_url
    yield from _door(dashboard)
    yield from _token_file(dashboard.token)
    yield _way(dashboard)
    yield from _inside(dashboard)
    if local is not None and is_local:
        yield from _machine(local, dashboard.token)
    else:
        yield Finding(
            WARNING,
            "what its machines listen on was not looked at: run terrafm doctor on them, or hold "
            "their security group or NetworkPolicy against docs/security.md",
        )


def _door(dashboard: Dashboard) -> Iterator[Finding]:
    """Who is let in."""
    mode = dashboard.request("GET", "/api/authentication_mode", {})
    try:
        on = mode.json()["authentication_mode"] == "token"
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{dashboard.url} is not the dashboard of a Ray that knows tokens (it answers "
            f"{mode.status_code})"
        ) from None
    if on:
        yield Finding(OK, "token authentication is on")
    else:
        yield Finding(
            FAULT,
            "token authentication is off: whoever reaches it runs code there. Start all its "
            "nodes with RAY_AUTH_MODE=token",
        )
    yield _refused(dashboard, "without a token", {}, 401)
    wrong = {"Authorization": f"Bearer {_NO_TOKEN}"}
    yield _refused(dashboard, "with a wrong token", wrong, 403)


def _refused(dashboard: Dashboard, how: str, headers: dict[str, str], wanted: int) -> Finding:
    let_in = []
    for method, path in GUARDED:
        status = dashboard.request(method, path, headers).status_code
        if status != wanted:
            let_in.append(f"{method} {path} ({status})")
    if let_in:
        return Finding(FAULT, f"{how} it does not answer {wanted} to {', '.join(let_in)}")
    return Finding(OK, f"requests {how} are refused ({wanted}, {len(GUARDED)} endpoints)")


def _token_file(token: Token | None) -> Iterator[Finding]:
    if token is None:
        yield Finding(WARNING, "there is no token here to try it with")
        return
    path = Path(os.path.expanduser(token.origin.removeprefix(f"{PATH_VARIABLE}=")))
    if not path.is_file():
        return
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or status.st_uid != os.getuid():
        yield Finding(
            FAULT,
            f"{path} is open to others (mode {mode:04o}): {command_line('chmod', '600', path)}, "
            "and make a new token",
        )
    else:
        yield Finding(OK, f"{path} is readable to its owner alone")


def _way(dashboard: Dashboard) -> Finding:
    """How the token travels from here."""
    parts = urlsplit(dashboard.url)
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return Finding(OK, f"the token leaves this machine in no clear text ({dashboard.url})")
    return Finding(
        FAULT,
        f"the token travels in clear text to {parts.hostname}: reach the dashboard through a "
        "tunnel (ray dashboard, kubectl port-forward), or over https",
    )


def _inside(dashboard: Dashboard) -> Iterator[Finding]:
    """What the cluster says of itself to who has its token."""
    try:
        version = str(dashboard.get("/api/version").get("ray_version"))
        nodes = dashboard.nodes()
    except TerraFMError as error:
        yield Finding(FAULT, f"{error}")
        return
    yield Finding(OK, "the token is taken")
    if told := differences({"ray": own_versions()["ray"]}, {"ray": version}):
        yield Finding(FAULT, told)
    else:
        yield Finding(OK, f"Ray is {version}, as here")
    raylets = [node["raylet"] for node in nodes if node.get("raylet")]
    dead = [raylet["nodeName"] for raylet in raylets if raylet["state"] != "ALIVE"]
    alive = len(raylets) - len(dead)
    text = f"{alive} nodes are alive"
    yield Finding(WARNING if dead else OK, f"{text}, {', '.join(dead)} not" if dead else text)
    between = {raylet["nodeManagerAddress"] for raylet in raylets}
    if not all(is_loopback(host) for host in between):
        yield Finding(
            WARNING,
            "between its nodes everything, the token too, travels in clear text unless the "
            "network encrypts: docs/security.md, TLS",
        )


def _machine(local: state.LocalCluster, token: Token | None) -> Iterator[Finding]:
    """What shows on this machine."""
    family = local.family()
    sockets = listening(family)
    yield from _sockets(sockets)
    shown = shown_in(family, token.value) if token else []
    if shown:
        yield Finding(FAULT, f"the token stands in the arguments of processes {shown}")
    else:
        yield Finding(OK, f"the token is in no argument of {len(family)} processes")
    for path in (state.folder(), Path(local.scratch)):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            mend = command_line("chmod", "700", path)
            yield Finding(FAULT, f"{path} is open to others (mode {mode:04o}): {mend}")
        else:
            yield Finding(OK, f"{path} is readable to its owner alone")


def _sockets(sockets: list[Socket]) -> Iterator[Finding]:
    rendezvous = [s for s in sockets if s.is_open and s.kind == "training worker"]
    bad = [s for s in sockets if s.is_open and s not in rendezvous]
    if bad:
        yield Finding(FAULT, f"open beyond this machine: {', '.join(map(str, bad))}")
    else:
        yield Finding(OK, f"{len(sockets) - len(rendezvous)} sockets listen on loopback only")
    if rendezvous:
        yield Finding(
            WARNING,
            f"while a run trains, PyTorch's rendezvous listens on every interface, and asks for "
            f"no token: {', '.join(map(str, rendezvous))}",
        )
    dashboards = [s for s in sockets if s.kind == "dashboard"]
    if dashboards and not any(s.is_open for s in dashboards):
        yield Finding(OK, "the dashboard listens on loopback")

"""Submits a verb: checks the cluster, packs, uploads, starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from terrafm.clusters.versions import JOB_VARIABLE, VERSIONS_VARIABLE, differences, own_versions
from terrafm.config.files import read_files, recipe_names
from terrafm.errors import UsageError
from terrafm.jobs import package
from terrafm.jobs.arguments import Command
from terrafm.jobs.client import RUN_KEY, JobServer
from terrafm.modalities import VARIABLE as SENSORS_VARIABLE
from terrafm.storage import canonical

# On the head, which is not taken away: the resource that Ray gives it alone. An empty request
# would leave the choice to a setting of the cluster.
ON_HEAD = {"node:__internal_head__": 0.001}
_PYTHON_OPTION = "--python_worker_command="
_PYTHON_FOLDER = re.compile(r"/python(\d+\.\d+)/site-packages/")


def submit(
    server: JobServer,
    command: Command,
    folder: Path,
    python: str | None,
    tell: Callable[[str], None],
    *,
    dry_run: bool = False,
) -> str | None:
    """Starts a verb as a job on a cluster.

    Args:
        server: the cluster's.
        command: the verb and its arguments.
        folder: whose code and configuration travel.
        python: the interpreter on the head; by default the one that Ray runs with.
        tell: told what is sent, before it is.
        dry_run: only tell, file by file.

    Returns:
        The submission id; None of a dry run.

    Raises:
        UsageError: the cluster's Ray or Python differ, the run is at work already, or the folder
            is too large.
        TerraFMError: the cluster refuses.
    """
    if command.verb == "sweep" and "--resume" not in command.words:
        # Begins where there is nothing to go on with.
        command = replace(command, words=[*command.words, "--resume"])
    head = _head(server)
    check_versions(server, head)
    run = _run_key(command)
    name = _free_name(server, command, run)
    with tempfile.TemporaryDirectory() as scratch:
        packed = package.build(folder, Path(scratch) / "terrafm.zip")
        check_config_travels(command, folder, packed)
        if dry_run:
            tell(f"would send {packed}: terrafm's own, and from {folder.resolve()}")
            for file in packed.own or ("nothing",):
                tell(f"    {file}")
            return None
        tell(f"sending {packed}, {len(packed.own)} of them from {folder.resolve()}")
        return server.submit(
            submission_id=name,
            entrypoint=shlex.join([python or _interpreter(head), "-m", "ray_jobs", *command.words]),
            runtime_env={
                "working_dir": str(packed.path),
                "env_vars": {
                    VERSIONS_VARIABLE: json.dumps(own_versions()),
                    JOB_VARIABLE: name,
                    **_sensors(),
                },
            },
            metadata={
                RUN_KEY: run,
                "terrafm_verb": command.verb,
                **({} if command.output is None else {"terrafm_output": command.output}),
            },
            entrypoint_resources=ON_HEAD,
        )


def _sensors() -> dict[str, str]:
    """Sensors of modules of one's own, which travel with the folder or lie in the image."""
    named = os.environ.get(SENSORS_VARIABLE)
    return {SENSORS_VARIABLE: named} if named else {}


def check_versions(server: JobServer, head: dict[str, Any]) -> None:
    """Compares what can be known before anything is sent; the job itself compares the rest.

    Raises:
        UsageError: Ray or Python differ.
    """
    own = own_versions()
    cluster = {"ray": server.ray_version}
    if found := _PYTHON_FOLDER.search(" ".join(head.get("cmdline", []))):
        cluster["python"] = found[1]
    if told := differences({name: own[name] for name in cluster}, cluster):
        raise UsageError(told)


def _head(server: JobServer) -> dict[str, Any]:
    """The head as its own agent describes it; empty while it has not."""
    return next((n for n in server.dashboard.nodes() if n.get("raylet", {}).get("isHeadNode")), {})


def _interpreter(head: dict[str, Any]) -> str:
    """The Python of the head's workers: the one of the PATH may be another."""
    for word in head.get("cmdline", []):
        if word.startswith(_PYTHON_OPTION):
            return str(word.removeprefix(_PYTHON_OPTION).split(" ", 1)[0])
    raise UsageError(
        "the cluster does not say which Python its head runs with: give it with --python"
    )


def _run_key(command: Command) -> str:
    """The same for the same run: what is written where, else all words."""
    what = [command.verb, canonical(command.output)] if command.output else command.words
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]


def _free_name(server: JobServer, command: Command, run: str) -> str:
    """A submission id that says the run, and is new: Ray takes each only once.

    Raises:
        UsageError: the run is at work: two drivers would write into one folder.
    """
    jobs = server.jobs()
    for job in jobs:
        if (job.metadata or {}).get(RUN_KEY) == run and not job.status.is_terminal():
            raise UsageError(
                f"{command.verb} is at work on {command.output or 'this'} already, as "
                f"{job.submission_id}: {server.command('follow', job.submission_id)}, or "
                f"{server.command('stop', job.submission_id)}"
            )
    taken = {job.submission_id for job in jobs}
    last = (command.output or "").rstrip("/").rsplit("/", 1)[-1]
    words = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:30]
    stem = "-".join(part for part in (command.verb, words, run) if part)
    names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def check_config_travels(command: Command, folder: Path, packed: package.Package) -> None:
    """Looks whether a configuration file and all that it stands on go along.

    Raises:
        UsageError: names the one that does not.
    """
    for option, value in zip(command.words, command.words[1:], strict=False):
        if option != "--config" or not Path(value).suffix or "://" in value:
            continue
        if value not in packed.files:
            raise _stays(value)
        above = value
        for file in read_files(str(folder / value))[1:]:
            if file.name in recipe_names() or "://" in file.uri:
                break
            inside = os.path.relpath(file.uri, folder)
            if os.path.isabs(file.name) or inside.startswith(".."):
                raise UsageError(
                    f"`base: {file.name}` of {above} does not travel: put that file into {folder}, "
                    "and write its place beside the file that stands on it"
                )
            if inside not in packed.files:
                raise _stays(inside)
            above = inside


def _stays(name: str) -> UsageError:
    return UsageError(
        f"{name} stays here: hidden, ignored, named like a secret, or no .yaml file; rename it"
    )

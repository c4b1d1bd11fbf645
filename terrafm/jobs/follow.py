"""Prints what a job prints, until it ends or the user has seen enough."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing

import aiohttp

from terrafm.errors import TerraFMError
from terrafm.jobs.client import JobServer, JobStatus
from terrafm.jobs.shown import Shown, clean

QUESTION = "stop the job, or only stop watching? [s/W] "


def follow(server: JobServer, job: str, ask: Callable[[str], str] | None = None) -> int:
    """Prints a job's output as it comes.

    Ctrl-C asks whether to stop the job or only to stop watching; where nobody can be asked, the
    watching stops.

    Args:
        server: the cluster's.
        job: submission id.
        ask: puts a question; by default on the terminal.

    Returns:
        The exit code for the command: the job's own, 0 where the watching was stopped.

    Raises:
        TerraFMError: the connection was lost; the job goes on.
    """
    try:
        asyncio.run(_print(server, job))
    except KeyboardInterrupt:
        return _interrupted(server, job, ask or _ask)
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise TerraFMError(
            f"lost sight of {job} ({type(error).__name__}), which goes on: "
            f"{server.command('follow', job)}"
        ) from None
    return exit_code(server, job)


def exit_code(server: JobServer, job: str) -> int:
    """What a job that has ended means for the command: 0 done, its own code, or 1."""
    found = server.job(job)
    if found.status == JobStatus.SUCCEEDED:
        return 0
    if found.status == JobStatus.STOPPED:
        sys.stderr.write(f"terrafm: {job} was stopped\n")
    elif found.status.is_terminal() and found.driver_exit_code is None:
        # It never began: no line of its own says why.
        reason = clean(found.message or "").strip().splitlines()
        sys.stderr.write(f"terrafm: {job} failed: {reason[-1] if reason else 'no reason given'}\n")
    return found.driver_exit_code if found.driver_exit_code in (1, 2) else 1


async def _print(server: JobServer, job: str) -> None:
    # Closed in this task: whoever is interrupted leaves no other behind.
    async with aclosing(server.client.tail_job_logs(job)) as texts:
        shown = Shown()
        async for text in texts:
            sys.stdout.write(shown(text))
            sys.stdout.flush()


def _interrupted(server: JobServer, job: str, ask: Callable[[str], str]) -> int:
    try:
        answer = ask(QUESTION).strip().lower()
    except (KeyboardInterrupt, EOFError):
        answer = ""
    if answer.startswith("s"):
        server.stop(job)
        sys.stderr.write(f"terrafm: {job} was stopped\n")
        return 1
    sys.stderr.write(f"terrafm: {job} goes on: {server.command('follow', job)}\n")
    return 0


def _ask(question: str) -> str:
    if not sys.stdin.isatty():
        raise EOFError
    sys.stderr.write("\n" + question)
    sys.stderr.flush()
    return sys.stdin.readline()

"""Runs the command line as a user does: in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil

# Short patience for a stalled request, enough for everything else.
PATIENCE = {"TERRAFM_STALL_SECONDS": "2", "TERRAFM_RETRY_SECONDS": "120"}
# Many small shards, so that there is something to interrupt.
SMALL = ["--tile-size", "48", "--set", "ingest.tiles_per_shard=8", "--set", "ingest.workers=2"]


_started = []


def terrafm(*arguments, timeout=600, check=0, environment=None, folder=None):
    """Runs `terrafm ARGUMENTS` in a folder, checks the exit code, returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "terrafm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment() | (environment or {}),
        cwd=folder,
        check=False,
    )
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def start(*arguments, log, environment=None):
    """Starts `terrafm ARGUMENTS`; its output goes to a file. It does not outlive the test."""
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "terrafm", *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean_environment() | (environment or {}),
        )
    _started.append(process)
    return process


def end_started():
    """Kills what `start` has started and the test, having failed, has not waited for."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_session(process)


def clean_environment():
    """Without a cluster that the tests would join by accident."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


def ingest(archive, output, environment, *more, check=0, timeout=600):
    """`terrafm ingest` of a GeoTIFF folder into small shards."""
    return terrafm(
        *ingest_arguments(archive, output, more),
        environment=environment | PATIENCE, check=check, timeout=timeout,
    )  # fmt: skip


def start_ingest(archive, output, environment, *more):
    """The same, started in a session of its own and not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "terrafm", *ingest_arguments(archive, output, more)],
        env=clean_environment() | environment | PATIENCE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def ingest_arguments(archive, output, more):
    where = ["--source", "geotiff", "--input", str(archive), "--output", str(output)]
    return ["ingest", *where, *SMALL, *more]


def kill_session(job):
    """kill -9 of a command and of the Ray processes that it started."""
    try:
        family = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    except psutil.NoSuchProcess:
        family = []
    for process in reversed(family):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    job.wait()


def kill_command(process):
    """kill -9 of a command alone, and of what Ray has not ended a minute later.

    What Ray leaves behind ends by itself once its driver is gone; it must not write on.
    """
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)
    for orphan in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()


def children_named(name, process):
    """Ray's processes of one kind, all of them children of the command."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found

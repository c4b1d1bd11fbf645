"""Runs the command line as a user does: in a process of its own."""

import os
import subprocess
import sys


def terrafm(*arguments, timeout=280, check=0, environment=None):
    """Runs `terrafm ARGUMENTS`, checks the exit code, returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "terrafm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment() | (environment or {}),
        check=False,
    )
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def start(*arguments, log):
    """Starts `terrafm ARGUMENTS`; its output goes to a file."""
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "terrafm", *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
        )


def clean_environment():
    """Without a cluster that the tests would join by accident."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

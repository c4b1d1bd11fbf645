"""Fixtures of the attacks: archives as strangers bring them, and the command line as it is run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from bounded import evaluate
from forked import call_in_process

_spec = spec_from_file_location("archives", Path(__file__).parents[1] / "data" / "conftest.py")
_archives = module_from_spec(_spec)
_spec.loader.exec_module(_archives)
major_tom_archive = _archives.major_tom_archive
product_bands = _archives.product_bands
geotiff_bytes = _archives.geotiff_bytes


@pytest.fixture
def terrafm():
    """Runs the installed command in a process of its own: exit code, output and errors."""
    # `python -m terrafm` would look for modules in the working directory by itself.
    command = Path(sys.executable).with_name("terrafm")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    def call(*arguments, folder=None, timeout=120):
        done = subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=folder,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return call


@dataclass(frozen=True)
class Bounded:
    """What a call came to in a process whose memory is limited.

    Attributes:
        code: 2 where the file was refused, 3 without memory, else 0.
        said: of the refusal, or the answer.
        grown: resident memory that the process took beyond its imports, at its peak, MiB.
    """

    code: int
    said: str
    grown: int


@pytest.fixture
def bounded():
    """Evaluates an expression of `path` for each argument, in one process of its own.

    Its address space has a limit, and so has its time.
    """

    def call(imports, expression, *paths, errors="ValueError", timeout=60, limit=12 << 30):
        code, out, said = call_in_process(
            evaluate, imports, expression, errors, limit, [str(p) for p in paths], timeout=timeout
        )
        assert code == 0, said
        lines = [line.split(" ", 3) for line in out.splitlines() if line[:6] == "ended "]
        return [Bounded(int(code), said, int(grown)) for _, code, grown, said in lines]

    return call

"""Fixtures of the attacks: archives as strangers bring them, and the command line as it is run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

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
    """What a process of its own came to.

    Attributes:
        code: exit code; 2 where the file was refused.
        said: its last line, of the refusal or of the answer.
        grown: resident memory that the reading took at its peak, MiB.
    """

    code: int
    said: str
    grown: int


_BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from terrafm.errors import TerraFMError
from terrafm.cli import main
{imports}

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10

before, code = peak(), 0
try:
    said = repr({call})[:200]
except (TerraFMError, {errors}) as error:
    said, code = str(error), 2
except MemoryError:
    said, code = "MemoryError", 3
except SystemExit as ended:
    said, code = "", ended.code
print(said.replace(chr(10), " | "))
print(code, peak() - before)
"""


@pytest.fixture
def bounded():
    """Evaluates an expression in a process of its own, whose memory and time are limited."""

    def call(imports, expression, *arguments, errors="ValueError", timeout=30, limit=12 << 30):
        program = _BOUNDED.format(imports=imports, call=expression, errors=errors, limit=limit)
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        *_, said, last = done.stdout.splitlines()
        code, grown = map(int, last.split())
        return Bounded(code, said, grown)

    return call

"""Fixtures of the attacks: archives as strangers bring them, and the command line as it is run."""

import os
import subprocess
import sys
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

"""The code of docs/report.md runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import code_block

PAGE = Path(__file__).resolve().parents[2] / "docs" / "report.md"


@pytest.fixture
def here(run_folder, small_dataset, tmp_path):
    """A folder with what the page has."""
    for name in ("run", "other-run"):
        run_folder(name).started().lines(20)
    shutil.copytree(small_dataset, tmp_path / "tiles")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run(here):
    words = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", code_block("docs/report.md", "bash")]
    subprocess.run(command, cwd=here, env=os.environ | words, check=True)
    assert len(list(here.glob("*.html"))) == 5


@pytest.mark.slow
def test_the_python_runs(here):
    subprocess.run(
        [sys.executable, "-c", code_block("docs/report.md", "python")], cwd=here, check=True
    )
    assert "<h1>Run run</h1>" in (here / "run.html").read_text()

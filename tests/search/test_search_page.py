"""The code of docs/search.md runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import code_block

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


@pytest.fixture
def here(embeddings, tmp_path):
    """A folder with what the page has."""
    shutil.copytree(embeddings, tmp_path / "embedded")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run(here):
    names = {"TILE": "tile_03", "LONGITUDE": "15.05", "LATITUDE": "0.09"}
    environment = (
        os.environ
        | names
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code_block("docs/search.md", "bash")],
        cwd=here, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in here.glob("*.png")} == {"contact_sheet.png", "similar.png"}
    assert len(json.loads((here / "similar.json").read_text())["neighbours"]) == 5


def test_the_python_runs(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    exec(compile(code_block("docs/search.md", "python"), str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_every_option_is_on_the_page(run):
    code, out, _ = run("search", "--help")
    assert code == 0
    for option in re.findall(r"--?[a-z]+(?= )", out):
        assert option == "--help" or f"`{option}" in PAGE.read_text(), option

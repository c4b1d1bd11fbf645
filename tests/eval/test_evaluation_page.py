"""The code of docs/evaluation.md runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return found


@pytest.mark.slow
def test_the_commands_run(tmp_path, shared_folder, weights):
    # Where the page has them.
    shutil.copytree(Path(weights).parent, tmp_path / "weights")
    environment = os.environ | {
        "EUROSAT": str(shared_folder / "realdata" / "eurosat_ms"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("bash")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean spectrum" in done.stdout
    result = json.loads((tmp_path / "table.json").read_text())
    assert result["n"] == 100
    assert len(list((tmp_path / "features").glob("*.parquet"))) == 3


def test_the_python_runs(small_dataset, weights, capsys):
    names = {"data": small_dataset, "weights": weights}
    exec(compile(block("python"), str(PAGE), "exec"), names)
    assert "untrained" in capsys.readouterr().out

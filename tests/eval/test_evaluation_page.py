"""The code of docs/evaluation.md runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return found


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    statistics = {
        name: {"mean": [0.14] * m.channels, "std": [0.04] * m.channels}
        for name, m in MODALITIES.items()
    }
    uri = tmp_path / "weights" / "tiny.safetensors"
    contract = WeightsContract.build("terrafm_tiny", statistics)
    save_safetensors(str(uri), build_encoder("terrafm_tiny").state_dict(), contract)
    return uri


@pytest.mark.slow
def test_the_commands_run(tmp_path, shared_folder, weights):
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
    names = {"data": small_dataset, "weights": str(weights)}
    exec(compile(block("python"), str(PAGE), "exec"), names)
    assert "untrained" in capsys.readouterr().out

"""A teacher without a run, and an interpreter for printed lines."""

import subprocess
import sys

import pytest
import torch

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract


@pytest.fixture(scope="session")
def teacher():
    """An encoder and its contract; statistics of the size that real ones have."""
    torch.manual_seed(0)
    statistics = {
        name: {
            "mean": [-12.0 if name == "s1" else 0.2] * m.channels,
            "std": [4.0 if name == "s1" else 0.1] * m.channels,
        }
        for name, m in MODALITIES.items()
    }
    encoder = build_encoder("terrafm_tiny").eval()
    return encoder, WeightsContract.build("terrafm_tiny", statistics, image_size=64)


@pytest.fixture
def fresh_interpreter(tmp_path):
    """Runs lines of Python somewhere else; returns what they print. Nothing may go to stderr."""

    def run_lines(lines, environment=None):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning:__main__", "-c", lines],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run_lines

"""A teacher without a run, and a checkpoint whose teacher and student differ."""

import subprocess
import sys

import pytest
import torch

from terrafm.config import load_config
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract
from terrafm.train.checkpoints.store import save_checkpoint
from terrafm.train.setup import TrainingSetup


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


@pytest.fixture(scope="session")
def checkpoint(small_dataset, tmp_path_factory):
    """URI of a checkpoint after two steps, made without Ray."""
    settings = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32"]
    setup = TrainingSetup.open(load_config("demo", settings), small_dataset)
    distillation = setup.plain_distillation()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in distillation.teacher.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    state = setup.state(2, distillation.engine.state(), distillation)
    return save_checkpoint(str(tmp_path_factory.mktemp("run") / "checkpoints"), state)


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

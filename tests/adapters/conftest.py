"""A teacher of all sensors, and a run of another tool in an environment of its own."""

import importlib
import sys
import types

import pytest
import torch

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract


@pytest.fixture(scope="session")
def contract():
    def statistics(name, channels):
        mean, std = (-15.0, 4.0) if name == "s1" else (0.2, 0.1)
        return {
            "mean": [mean + 0.01 * c for c in range(channels)],
            "std": [std + 0.01 * c for c in range(channels)],
        }

    known = {name: statistics(name, m.channels) for name, m in MODALITIES.items()}
    return WeightsContract.build("terrafm_tiny", known, image_size=64)


@pytest.fixture(scope="session")
def encoder():
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny").eval()


@pytest.fixture
def adapter_over(monkeypatch):
    """Imports a module of `terrafm.adapters` over stand-ins for the tool's own modules."""
    imported = []

    def load(name, modules):
        for path, content in modules.items():
            module = types.ModuleType(path)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, path, module)
        imported.append(f"terrafm.adapters.{name}")
        sys.modules.pop(imported[-1], None)
        return importlib.import_module(imported[-1])

    yield load
    for path in imported:
        sys.modules.pop(path, None)

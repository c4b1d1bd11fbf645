"""Small GeoTIFFs and untrained weights for the tests of evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from terrafm.eval.labelled import Grid
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors


@pytest.fixture(scope="session")
def write_image() -> Callable[[Path, np.ndarray], None]:
    return _write


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=pixels.dtype.name,
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        crs="EPSG:32633",
    ) as file:
        file.write(pixels)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a tiny encoder's weights, with a contract."""
    torch.manual_seed(5)
    statistics = {
        name: {"mean": [0.14] * m.channels, "std": [0.04] * m.channels}
        for name, m in MODALITIES.items()
    }
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    contract = WeightsContract.build("terrafm_tiny", statistics)
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    return uri


@pytest.fixture(scope="session")
def fields() -> type:
    """A set with masks; `fields(noise=, count=)` makes one."""
    return Fields


class Fields:
    """Images of four fields, each of two crops with a spectrum of its own; a strip is nodata."""

    uri = "fields"
    classes = ("no data", "wheat", "maize")
    modalities = ("s2_l2a",)
    bands = {"s2_l2a": "made here"}  # noqa: RUF012
    fingerprint = "fields"
    ignore: int | None = 0

    def __init__(self, noise=0.0, count=20):
        self.names = [f"field {i}" for i in range(count)]
        self.groups = np.arange(count)
        self.splits = np.array((["train"] * 3 + ["valid", "test"]) * (count // 5))
        generator = np.random.default_rng(0)
        self.crops = generator.integers(1, 3, size=(count, 2, 2))
        self.noise = noise * generator.normal(size=(count, 12, 64, 64))
        self.reads = 0

    def mask(self, row):
        mask = np.kron(self.crops[row], np.ones((32, 32), int))
        mask[:, :8] = 0
        return mask

    def read(self, row, modalities):
        self.reads += 1
        crops = np.kron(self.crops[row], np.ones((32, 32)))
        spectrum = np.linspace(-0.05, 0.05, 12)[:, None, None]
        pixels = 0.14 + spectrum * (2 * crops - 3) + self.noise[row]
        return {"s2_l2a": [Grid(tuple(range(12)), pixels.astype(np.float32))]}

    def statistics(self):
        return {"s2_l2a": {"mean": [0.14] * 12, "std": [0.05] * 12}}

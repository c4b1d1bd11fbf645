"""Small GeoTIFFs and untrained weights for the tests of evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

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

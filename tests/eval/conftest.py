"""Small GeoTIFFs for the tests of evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio


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

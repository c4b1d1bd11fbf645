import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

# The helpers beside the tests; tests are not a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """A command that a failed test has left would slow all later ones down."""
    from commands import end_started

    yield
    end_started()


@pytest.fixture
def short_folder():
    """For sockets: their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="fake-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Ten small places as GeoTIFFs."""
    return write_places(tmp_path_factory.mktemp("archive"), range(10))


def write_places(root, numbers):
    for number in numbers:
        generator = np.random.default_rng(number)
        ground = generator.integers(300, 3000, (13, 96, 96)).astype(np.int16)
        pixels = {
            "S1RTC": generator.normal(-14, 3, (2, 96, 96)),
            "S2L1C": ground,
            "S2L2A": ground[:12] - 40,
            "LULC": np.full((1, 96, 96), 1 + number % 3, np.uint8),
        }
        for sensor, values in pixels.items():
            (root / sensor).mkdir(exist_ok=True)
            with rasterio.open(
                root / sensor / f"place_{number}.tif", "w", driver="GTiff", count=len(values),
                dtype=values.dtype.name, height=96, width=96, crs="EPSG:32633",
                transform=rasterio.Affine(10, 0, 500000.0 + 10_000 * number, 0, -10, 5000000.0),
            ) as file:  # fmt: skip
                file.write(values)
    return root


@pytest.fixture(scope="module")
def more_places(tmp_path_factory):
    """Eight further places, an archive to append."""
    return write_places(tmp_path_factory.mktemp("more"), range(10, 18))

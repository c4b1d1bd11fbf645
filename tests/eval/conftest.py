"""Small GeoTIFFs and untrained weights for the tests of evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.entry import TileRecord
from terrafm.data.shards.manifest import CellGroup
from terrafm.data.shards.writer import write_shard
from terrafm.eval.datasets.labelled import Grid
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

TILE = 96
GROUPS = (
    CellGroup("s1", 10, ("VV", "VH"), TILE, TILE),
    CellGroup("s2_l1c", 10, ("B02", "B03", "B04", "B08"), TILE, TILE),
    CellGroup("s2_l2a", 10, ("B02", "B03", "B04", "B08"), TILE, TILE),
)


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


def ground(seed):
    """A smooth landscape of one place, as reflectance times 10,000; both dates show it."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(4, 8, 8))
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(coarse)[None], size=(TILE, TILE), mode="bicubic"
    )[0].numpy()
    return np.clip(2000 + 300 * rng.normal(size=(4, 1, 1)) + 200 * fine, 1, 9000)


@pytest.fixture(scope="session")
def two_dates(tmp_path_factory):
    """URI of 12 places at two dates; the last one has no radar, and one more has one date."""
    uri = str(tmp_path_factory.mktemp("retrieval") / "dataset")
    records = []
    for number in range(13):
        for date in range(2 if number < 12 else 1):
            pixels = ground(number) * (1 + 0.1 * date)
            radar = np.clip(-1500 + 0.2 * pixels[:2], -4000, 0).astype(np.int16)
            arrays = {name: pixels.astype(np.uint16) for name in ("s2_l1c_10m", "s2_l2a_10m")}
            if number != 11:
                arrays["s1_10m"] = radar
            records.append(
                TileRecord(
                    tile_id=f"{number:02d}-{1 - date}_0_0",
                    arrays=arrays,
                    land_cover=10,
                    histogram={10: TILE**2},
                    crs="EPSG:32633",
                    transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 1e4),
                    latitude=0.0,
                    longitude=15.0,
                    products={
                        name: {"time": f"202{date}-06-01T00:00:00Z"}
                        for name in {group.removesuffix("_10m") for group in arrays}
                    },
                    place=f"{number:02d}_0_0" if number < 12 else "",
                )
            )
    statistics = {
        "s1": {"bands": ["VV", "VH"], "mean": [-11.0] * 2, "std": [1.0] * 2},
        "s2_l1c": {"bands": list(GROUPS[1].bands), "mean": [0.2] * 12, "std": [0.05] * 12},
        "s2_l2a": {"bands": list(GROUPS[2].bands), "mean": [0.2] * 12, "std": [0.05] * 12},
    }
    statistics = {
        m: {"bands": list(MODALITIES[m].bands)} | {k: v for k, v in s.items() if k != "bands"}
        for m, s in statistics.items()
    }
    entry = write_shard(uri, "part-00000", records, GROUPS)
    options = {"statistics": statistics, "legend": {10: "tree cover"}, "report": {}}
    commit_dataset(uri, [entry], tile_size=TILE, gsd=10, groups=GROUPS, **options)
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

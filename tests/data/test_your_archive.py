"""The page "Your archive": each command runs, and what it says of bytes is what is read."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from eopf_products import pack, write_eopf
from pages import code_block
from range_server import serving
from safe_products import BANDS, CORNER, GSD, Product, ground, write_safe, write_zip
from stac_server import stac_api
from test_stac import collection, item, write_tiff
from test_stac_api import table
from zarr_shards import sample, write_archive, write_shard

from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.eopf import EopfArchive
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.stac import StacItems
from terrafm.data.sources.terramesh import TerraMesh

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/your_archive.md"
SIDE = 264
TILE_BYTES = 2 * sum((SIDE * 10 // GSD[band]) ** 2 for band in BANDS)


def run(name, folder, **variables):
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code_block(PAGE, f"bash {name}")], cwd=folder,
        env={**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Dataset.open(folder / "tiles")


@pytest.fixture
def cover(worldcover_tile):
    return str(worldcover_tile("N45E015", np.full((2500, 3500), 10, np.uint8), 33500, 14000))


@pytest.fixture
def product():
    return Product(ground(1, size=528, bands=BANDS), time="20220706T085611")


def test_safe(tmp_path, cover, product):
    write_zip(tmp_path / "safe", product)
    assert len(run("safe", tmp_path, SAFE=str(tmp_path / "safe"), WORLDCOVER=cover)) == 4


def test_eopf(tmp_path, cover, product):
    pack(write_eopf(tmp_path / "eopf", product))
    assert len(run("eopf", tmp_path, EOPF=str(tmp_path / "eopf"), WORLDCOVER=cover)) == 4


@pytest.mark.parametrize("name", ["stac-api", "stac-signed"])
def test_an_api(name, tmp_path, cover, product):
    entry = item(tmp_path / "files", product, href="/files/{}")
    with stac_api(tmp_path / "files", [entry], signed=name == "stac-signed") as server:
        variables = {"STAC_API": server.address, "SIGNER": f"{server.home}/sas"}
        assert len(run(name, tmp_path, WORLDCOVER=cover, **variables)) > 0


def test_items(tmp_path, cover, product):
    entry = item(tmp_path / "in", product)
    collection(tmp_path / "in/items.json", entry)
    table(tmp_path / "in/items.parquet", [entry])
    first = run("items", tmp_path, ITEMS=str(tmp_path / "in"), WORLDCOVER=cover)
    second = Dataset.open(tmp_path / "from_table")
    assert len(first) > 0
    assert first.tile_ids.tolist() == second.tile_ids.tolist()
    for name in first.read_tile(0):
        np.testing.assert_array_equal(first.read_tile(0)[name], second.read_tile(0)[name])


def test_terramesh(tmp_path):
    write_archive(tmp_path / "mesh/val", 2, side=SIDE)
    assert len(run("terramesh", tmp_path, TERRAMESH=str(tmp_path / "mesh"))) == 2


def test_geotiffs(tmp_path, cover, product):
    write_places(tmp_path / "in", product.pixels, ("S1RTC", "S2L1C", "S2L2A"))
    assert len(run("geotiff", tmp_path, GEOTIFFS=str(tmp_path / "in"), WORLDCOVER=cover)) == 4


def test_every_command_of_the_page_is_run_here():
    blocks = re.findall(r"^```bash (\S+)$", (ROOT / PAGE).read_text(), re.M)
    assert sorted(blocks) == sorted(
        ["safe", "eopf", "stac-api", "stac-signed", "items", "terramesh", "geotiff"]
    )
    assert "```bash\n" not in (ROOT / PAGE).read_text()


def write_places(root, bands, folders=("S2L2A",)):
    """Two by two places as GeoTIFFs of all bands on the 10 m grid."""
    stack = np.stack([np.kron(bands[b], np.ones((GSD[b] // 10,) * 2, bands[b].dtype))
                      for b in BANDS])  # fmt: skip
    radar = np.random.default_rng(0).normal(-14, 3, (2, *stack.shape[1:])).astype(np.float32)
    values = {"S2L2A": stack, "S2L1C": stack, "S1RTC": radar}
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for row in range(2):
            for column in range(2):
                part = values[folder][:, row * SIDE : (row + 1) * SIDE][..., column * SIDE :][
                    ..., :SIDE
                ]
                corner = CORNER[0] + column * SIDE * 10, CORNER[1] - row * SIDE * 10
                with rasterio.open(
                    root / folder / f"place{row}{column}.tif", "w", driver="GTiff",
                    count=len(part), height=SIDE, width=SIDE, dtype=part.dtype.name,
                    crs="EPSG:32633", compress="deflate", predictor=1 if len(part) == 2 else 2,
                    transform=rasterio.Affine(10, 0, corner[0], 0, -10, corner[1]),
                ) as file:  # fmt: skip
                    file.write(part)


def real_scene(realdata, side):
    """Bands of a real place at their own resolutions, mirrored until they fill a scene."""
    path = sorted((realdata / "colocated/S2L2A").glob("*.tif"))[0]
    with rasterio.open(path) as file:
        stack = file.read().astype(np.uint16)
    around = [(0, 0), *(((0, side - stack.shape[1])),) * 2]
    whole = np.pad(stack, around, mode="symmetric")
    return {band: np.ascontiguousarray(whole[n, :: GSD[band] // 10, :: GSD[band] // 10])
            for n, band in enumerate(BANDS)}  # fmt: skip


def stated(name):
    """What the page's table says of a row: times the pixels, requests."""
    row = next(line for line in (ROOT / PAGE).read_text().splitlines()
               if line.startswith("|") and f"| [{name}](" in line)  # fmt: skip
    columns = [part.strip() for part in row.strip("|").split("|")]
    requests = None if columns[3] == "-" else float(columns[3])
    return float(columns[2].removesuffix("x")), requests


def measured(source, refs):
    """Bytes that this process reads of files for a tile, over those of its pixels."""
    process = psutil.Process()
    # Libraries that are loaded with the first tile are no archive.
    pickle.loads(pickle.dumps(source)).read(refs[0])
    before = process.io_counters().read_chars
    # A cell of MGRS has several tiles.
    tiles = sum(np.prod(source.read(ref).shape) for ref in refs) / SIDE**2
    return (process.io_counters().read_chars - before) / tiles / TILE_BYTES


def check(name, times, requests=None):
    said, said_requests = stated(name)
    assert 0.6 * said <= times <= 1.1 * said, (name, times)
    if said_requests is not None:
        assert 0.4 * said_requests <= requests <= 1.2 * said_requests, (name, requests)


def test_the_bytes_of_the_table_are_those_that_are_read(tmp_path, realdata):
    side = 6 * SIDE
    product = Product(
        real_scene(realdata, side), time="20220706T085611",
        # As real products are tiled at 10 m.
        profile={"blockxsize": 1024, "blockysize": 1024},
    )  # fmt: skip
    request = SceneRequest(tile_size=SIDE, grid="utm", pixels=SIDE)

    write_safe(tmp_path / "folder", product)
    source = SafeArchive(str(tmp_path / "folder"), ("s2_l2a",), SceneRequest(tile_size=SIDE))
    check("safe", measured(source, source.cells()))

    write_eopf(tmp_path / "eopf", product)
    source = EopfArchive(str(tmp_path / "eopf"), ("s2_l2a",), SceneRequest(tile_size=SIDE))
    check("eopf", measured(source, source.cells()))

    entry = item(tmp_path / "cogs", product)
    for band, asset in ((b, a) for b, a in zip(BANDS, list(entry["assets"].values())[3:],
                                               strict=True)):  # fmt: skip
        write_cog(tmp_path / "cogs" / asset["href"], product.pixels[band], GSD[band])
    (tmp_path / "cogs/items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": [entry]})
    )
    with serving(tmp_path / "cogs") as server:
        source = StacItems(f"{server.address}/items.json", ("s2_l2a",), request)
        refs = source.cells()
        server.sent.clear()
        for ref in refs:
            source.read(ref)
        sent = sum(size for _, size in server.sent)
        check("stac", sent / len(refs) / TILE_BYTES, len(server.sent) / len(refs))

    write_places(tmp_path / "places", product.pixels)
    source = GeotiffFolder(str(tmp_path / "places"), ("s2_l2a",))
    check("geotiff", measured(source, source.cells()))

    stack = np.stack([np.kron(product.pixels[b], np.ones((GSD[b] // 10,) * 2, np.uint16))
                      for b in BANDS])  # fmt: skip
    samples = {
        f"majortom_val_{n:07d}": sample(
            "S2L2A", stack[None, :, n * SIDE : (n + 1) * SIDE, :SIDE].astype(np.int16),
            (CORNER[0], CORNER[1] - n * SIDE * 10),
        )
        for n in range(6)
    }  # fmt: skip
    write_shard(tmp_path / "mesh/S2L2A/majortom_shard_000001.tar", samples)
    source = TerraMesh(str(tmp_path / "mesh"), ("s2_l2a",))
    check("terramesh", measured(source, source.cells()))


def write_cog(path, values, gsd):
    """With the profile of Earth Search's: blocks of 512 (overviews left out), deflate."""
    write_tiff(path, values, gsd)
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=1, height=values.shape[0],
        width=values.shape[1], crs="EPSG:32633", tiled=True, blockxsize=512, blockysize=512,
        transform=rasterio.Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1]), compress="deflate",
        predictor=2,
    ) as file:  # fmt: skip
        file.write(values, 1)

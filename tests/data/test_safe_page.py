"""The section about SAFE products does what it says; a killed ingest goes on; memory stays flat."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from folders import files_of, rendered
from pages import code_block
from safe_products import BANDS, CORNER, Product, ground, write_radar, write_safe, write_zip

from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.storage import upload

ROOT = Path(__file__).resolve().parents[2]


def archive(folder, days=("06", "16")):
    for number, day in enumerate(days):
        stamp = f"202207{day}T085611"
        write_zip(folder, Product(ground(number, size=396), time=stamp, cloud=10.0 * number))
        write_safe(folder, Product(ground(number, size=396), level="L1C", time=stamp))
        power = np.random.default_rng(number).gamma(2, 0.05, (2, 420, 420)).astype(np.float32)
        for band, pixels in zip(("VV", "VH"), power, strict=True):
            name = f"S1A_IW_202207{day}T165000_DVP_RTC10_G_gpuned_11F3_{band}.tif"
            write_radar(folder / name, pixels, corner=(CORNER[0] - 105, CORNER[1] + 95))
    return folder


def environment(**more):
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), **more}


def test_the_commands_of_the_section_run(tmp_path, worldcover_tile):
    script = code_block("docs/datasets.md", "bash safe")
    archive(tmp_path / "safe")
    cover = np.full((2500, 3500), 10, np.uint8)
    where = {"SAFE": str(tmp_path / "safe"), "WORLDCOVER": str(
        worldcover_tile("N45E015", cover, 33500, 14000))}  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment(**where),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = Dataset.open(tmp_path / "scenes")
    assert len(dataset) == 9
    assert dataset.available.all()
    assert "2 s2 l2a scenes" in " ".join(rendered(tmp_path / "scenes").split())


def test_killed_and_repeated_it_gives_the_same_bytes(tmp_path, worldcover_tile):
    """Whatever was read when it died, and though its temporary files are left."""
    cover = np.full((2500, 3500), 10, np.uint8)
    cover = worldcover_tile("N45E015", cover, 33500, 14000)
    archive(tmp_path / "safe", days=("06", "11", "16"))
    command = [
        sys.executable, "-m", "terrafm", "ingest", "--source", "safe", "--input",
        tmp_path / "safe", "--tile-size", "66", "--worldcover", cover, "--grid", "utm:66",
        "--set", "ingest.workers=0", "--set", "ingest.dates_per_place=3",
        "--set", "ingest.tiles_per_shard=8", "--output",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment()}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*map(str, command), str(whole)], check=True, **quiet)
    shards = len(list((whole / "shards").iterdir()))
    assert shards > 5
    process = subprocess.Popen([*map(str, command), str(broken)], **quiet)
    deadline = time.monotonic() + 120
    while len(list(broken.glob("shards/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(broken.glob("*.json"))
    before = {p.name: p.stat().st_mtime_ns for p in broken.glob("shards/*.parquet")}
    assert 0 < len(before) < shards
    subprocess.run([*map(str, command), str(broken)], check=True, **quiet)
    assert files_of(broken) == files_of(whole)
    kept = {p.name for p in broken.glob("shards/*.parquet")
            if before.get(p.name) == p.stat().st_mtime_ns}  # fmt: skip
    assert kept


def test_memory_does_not_grow_with_scenes(tmp_path):
    """Open bands are bounded, as is what GDAL keeps."""
    days = [f"{day:02d}" for day in range(1, 29)]
    for number, day in enumerate(days):
        stamp = f"202207{day}T085611"
        write_safe(tmp_path, Product(ground(number, size=132, bands=BANDS), time=stamp))
    request = SceneRequest(tile_size=132, dates_per_place=99)
    source = SafeArchive(str(tmp_path), ("s2_l2a",), request)
    refs = source.cells()
    assert len(refs) == 28
    process = psutil.Process()
    levels, files = [], []
    for _ in range(3):
        for ref in refs:
            source.read(ref)
            levels.append(process.memory_info().rss)
            files.append(process.num_fds())
    # The first round fills the caches.
    assert max(levels[56:]) - max(levels[28:56]) < 8 << 20
    assert max(files) - files[0] <= 60


def test_products_in_a_store_are_read_as_on_a_disk(s3_bucket, tmp_path):
    """Bands of JPEG 2000 are copied one by one; of a zip only its members travel."""
    product = Product(ground(1, size=132), time="20220706T085611")
    level_1c = Product(ground(2, size=132), level="L1C", time="20220706T085611")
    root = write_safe(tmp_path, product)
    packed = write_zip(tmp_path, level_1c)
    radar = np.random.default_rng(1).gamma(2, 0.05, (132, 132)).astype(np.float32)
    name = "S1A_IW_20220706T165000_DVP_RTC10_G_gpuned_11F3_VV.tif"
    written = write_radar(tmp_path / name, radar)
    for file in [*root.rglob("*"), packed, written]:
        if file.is_file():
            upload(file, f"{s3_bucket}/safe/{file.relative_to(tmp_path)}")
    request = SceneRequest(tile_size=132)
    source = SafeArchive(f"{s3_bucket}/safe", ("s1", "s2_l1c", "s2_l2a"), request)
    (ref,) = source.cells()
    cell = source.read(ref)
    for band in BANDS:
        for modality, written in (("s2_l2a", product), ("s2_l1c", level_1c)):
            read = cell.products[modality].bands[band]
            np.testing.assert_array_equal(read, written.pixels[band])
    np.testing.assert_array_equal(cell.products["s1"].bands["VV"], radar)

"""Ingest of scenes and samples that are damaged or killed: one line, exit codes, the same bytes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import faults_of, files_of
from scene_archives import SOURCES, cover_of, options, raster_of, write_dates
from zarr_shards import pixels, sample, write_shard

from terrafm.data.shards.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]
SIZE = 132


def command(source, archive, out, cover, *more, size=SIZE, grid=None):
    cover = [] if source == "terramesh" else ["--worldcover", cover]
    words = [sys.executable, "-m", "terrafm", "ingest", "--input", archive, "--output", out, *cover,
             *options(source, size, grid), *more]  # fmt: skip
    return [str(word) for word in words]


def run(*words, check=None):
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def last_line(done):
    """What is said of a failure: nothing but lines of progress before it, and no traceback."""
    assert "Traceback" not in done.stderr + done.stdout
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


@pytest.fixture
def cover(worldcover_tile):
    return cover_of(worldcover_tile)


@pytest.fixture
def damaged(tmp_path):
    """Writes four dates, of which one has a band cut short and one lacks it; a name of each."""

    def write(source):
        folder = tmp_path / "in"
        if source == "terramesh":
            samples = {"S2L2A": {}, "LULC": {}}
            for place in range(4):
                corner = (603_960 + place * SIZE * 10, 4_988_880)
                for content, of_content in samples.items():
                    values = pixels(content, place, SIZE)
                    of_content[f"majortom_val_{place:07d}"] = sample(content, values, corner)
            optical = samples["S2L2A"]
            short, other = list(optical)[1:3]
            optical[short] = optical[short][: len(optical[short]) // 2]
            optical[other] = sample("S2L2A", pixels("S2L2A", 9, SIZE)[:, :11], (624_000, 4_988_880))
            for content, of_content in samples.items():
                write_shard(folder / f"val/{content}/majortom_shard_000001.tar", of_content)
            return folder, (short, other)
        archive = write_dates(source, folder, 4, SIZE)
        short, other = (raster_of(source, folder, n) for n in (1, 2))
        short.write_bytes(short.read_bytes()[: short.stat().st_size // 3])
        # A chunk that is not there is fill: an array has to lose what describes it.
        if source == "eopf":
            (other.parents[4] / ".zmetadata").unlink()
            other.with_name(".zarray").unlink()
        else:
            other.unlink()
        return archive, ("20220102", "20220103")

    return write


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_scenes_go_to_quarantine_by_name(source, damaged, tmp_path, cover):
    archive, names = damaged(source)
    out = tmp_path / "out"
    first = command(source, archive, out, cover)
    # Half is more than is borne: exit code 1, and one line that says where the list is.
    done = run(*first, "--set", "ingest.max_bad_fraction=0.4", check=1)
    assert "2 of 4 tiles are bad" in last_line(done)
    assert not (out / "manifest.json").exists()
    # The limit does not change what was made: the same work goes on.
    run(*first, "--set", "ingest.max_bad_fraction=0.6", check=0)
    assert len(Dataset.open(out)) == 2
    faults = faults_of(out)
    assert len(faults) == 2
    for fault, name in zip(sorted(faults, key=lambda f: f["what"]), names, strict=True):
        assert name in fault["what"]
        assert fault["quarantined"]
        assert fault["where"]
        assert "\n" not in fault["why"]


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_there_is_one_line_and_exit_code_2(source, tmp_path, cover):
    done = run(*command(source, tmp_path / "none", tmp_path / "out", cover), check=2)
    assert f"{tmp_path / 'none'} does not exist" in last_line(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", [name for name in SOURCES if name != "safe"])
def test_killed_and_repeated_it_gives_the_same_bytes(source, tmp_path, cover):
    """SAFE's own is in test_safe_page.py."""
    grid = None if source == "terramesh" else "utm:66"
    if source == "terramesh":
        archive = write_dates(source, tmp_path / "in", 160, 66)
    else:
        archive = write_dates(source, tmp_path / "in", 4, 396)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("--set", "ingest.tiles_per_shard=8")
    words = {out: command(source, archive, out, cover, *more, size=66, grid=grid)
             for out in (whole, broken)}  # fmt: skip
    run(*words[whole], check=0)
    shards = len(list((whole / "shards").iterdir()))
    assert shards > 10
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words[broken], env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet)
    deadline = time.monotonic() + 200
    while len(list(broken.glob("shards/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (broken / "manifest.json").exists()
    before = {p.name: p.stat().st_mtime_ns for p in broken.glob("shards/*.parquet")}
    assert 0 < len(before) < shards
    run(*words[broken], check=0)
    assert files_of(broken) == files_of(whole)
    kept = [p for p in broken.glob("shards/*.parquet")
            if before.get(p.name) == p.stat().st_mtime_ns]  # fmt: skip
    assert kept


# Of this program alone: what getrusage tells of a process includes who started it.
_MEASURED = """
import sys
from pathlib import Path
from terrafm.cli import main
try:
    main(sys.argv[1:])
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM")), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", SOURCES)
def test_peak_memory_does_not_grow_with_scenes(source, tmp_path, cover):
    """Ten times the scenes; the process reads by itself, so its peak is that of the whole."""
    few, many = 6, 60
    peaks = {}
    for number in (few, many):
        archive = write_dates(source, tmp_path / f"in{number}", number, 264)
        out = tmp_path / f"out{number}"
        words = command(source, archive, out, cover, size=264)
        done = run(words[0], "-c", _MEASURED, *words[3:], check=0)
        peaks[number] = int(done.stdout.rpartition("VmHWM:")[2].split()[0]) / 1024
        assert len(Dataset.open(out)) == number
    assert peaks[many] <= 1.10 * peaks[few], peaks

"""benchmarks/earth.py: its statistics where their values are known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import earth


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_pixels_of_noise_are_like_no_other_and_blocks_like_their_own(rng):
    noise = rng.normal(size=(40, 3, 96, 96))
    inside = noise - noise.mean((-2, -1), keepdims=True)
    assert earth._likeness(inside, 1) == pytest.approx(0, abs=0.01)
    blocks = np.kron(rng.normal(size=(40, 3, 12, 12)), np.ones((8, 8)))
    inside = blocks - blocks.mean((-2, -1), keepdims=True)
    # Of 92 pairs of pixels at a distance of four, 48 lie in one block.
    assert earth._likeness(inside, 4) == pytest.approx(48 / 92, abs=0.02)
    assert earth._likeness(inside, 16) == pytest.approx(0, abs=0.03)


def test_directions_are_counted(rng):
    one = rng.normal(size=(5000, 1))
    assert earth._directions(one @ np.ones((1, 6)) + 1e-6) == pytest.approx(1)
    assert earth._directions(rng.normal(size=(5000, 6))) == pytest.approx(6, rel=0.02)


def test_what_one_sensor_tells_of_the_other(rng):
    bands = rng.normal(size=(4000, 5))
    target = bands @ rng.normal(size=(5, 1)) + 3
    assert earth._r2(bands, target) == pytest.approx(1)
    noise = rng.normal(size=(4000, 1)) * target.std()
    assert earth._r2(bands, target + noise) == pytest.approx(0.5, abs=0.03)
    assert earth._r2(bands, noise) == pytest.approx(0, abs=0.01)


def test_a_tile_s_level_is_no_part_of_what_lies_inside(rng):
    tiles = rng.normal(size=(4, 2, 16, 16)) + 100 * np.arange(4)[:, None, None, None]
    rows = earth._inside(tiles)
    assert rows.shape == (4 * 256, 2)
    assert np.abs(rows).max() < 10


@pytest.mark.slow
def test_the_benchmark_lays_both_side_by_side(shared_folder, tmp_path):
    command = [sys.executable, earth.__file__, "--json", "--quick"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert len(set(names)) == len(names) > 40
    for synthetic, real in zip(names[::2], names[1::2], strict=True):
        assert synthetic.removesuffix(", synthetic") == real.removesuffix(", real")

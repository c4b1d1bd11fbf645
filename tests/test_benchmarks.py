"""Benchmarks run, and print what a program can read; how fast they are is not tested."""

import json
import subprocess
import sys
from pathlib import Path

from terrafm.modalities import MODALITIES

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
KEYS = {"name", "value", "bar", "better", "unit", "machine"}
FIGURES = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in ("common", "demo_knn")
)


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(name, *arguments):
    lines = [json.loads(line) for line in run(name, "--quick", "--json", *arguments).splitlines()]
    for line in lines:
        assert set(line) == KEYS
        assert line["better"] in ("higher", "lower")
        assert line["value"] > 0
        assert line["bar"] is None or line["bar"] > 0
    assert len({line["name"] for line in lines}) == len(lines)
    return {line["name"]: line for line in lines}


def test_every_figure_has_its_file():
    assert FIGURES == [
        "checkpoint_stall",
        "crops",
        "decode",
        "memory",
        "peers",
        "plan",
        "s3_stream",
        "shard_size",
        "simulation",
        "stream",
    ]


def test_help_says_what_is_measured():
    # In one process: each file would import torch and Ray anew.
    script = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, sys.argv[1])
texts = {}
for name in sys.argv[2:]:
    sys.argv = [f"{name}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_path(f"{sys.path[0]}/{name}.py", run_name="__main__")
    texts[name] = text.getvalue()
print(json.dumps(texts))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(BENCHMARKS), *FIGURES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, text in json.loads(done.stdout).items():
        assert f"python benchmarks/{name}.py" in text
        assert "--json" in text


def test_synthetic_pixels_take_the_place_of_real_ones(tmp_path):
    found = figures("shard_size", "--real", str(tmp_path))
    label = "shard bytes / LZW GeoTIFF, blosc2"
    whole = found[f"{label}, all modalities"]
    assert whole["bar"] == 0.75
    assert whole["machine"].endswith("synthetic pixels")
    parts = [found[f"{label}, {modality}"]["value"] for modality in MODALITIES]
    assert min(parts) <= whole["value"] <= max(parts) < 1.5


def test_real_pixels_shrink_and_decode_faster(shared_folder):
    found = figures("shard_size")
    # Bytes do not depend on how busy the machine is: the bar holds here as well.
    assert found["shard bytes / LZW GeoTIFF, blosc2, all modalities"]["value"] <= 0.75
    assert all(figure["machine"].endswith("real pixels") for figure in found.values())
    decoded = figures("decode")
    assert decoded["decode, blosc2 against rasterio"]["bar"] == 8


def test_plan_is_measured_in_processes_of_its_own():
    found = figures("plan")
    assert {figure["unit"] for figure in found.values()} == {"s", "GB"}
    small, large = (figure["value"] for figure in found.values() if figure["unit"] == "GB")
    assert small < large < 1


def test_a_checkpoint_is_saved_both_ways(tmp_path):
    found = figures("checkpoint_stall", "--work", str(tmp_path), "--step-seconds", "0.5")
    shares = [name for name in found if name.startswith("time lost to saving every 100 steps")]
    assert len(shares) == 2
    assert all(0 < found[name]["value"] < 100 for name in shares)
    assert not (tmp_path / "checkpoint-stall").exists()

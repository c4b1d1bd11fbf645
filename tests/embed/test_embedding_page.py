"""The code of docs/embedding.md runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from pages import code_block

from terrafm.embed.schema import (
    BBOX_SIDES,
    WINDOW_SIDES,
    EmbeddingManifest,
    embedding_schema,
    read_manifest,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"


@pytest.mark.slow
def test_the_commands_run(small_dataset, tiny_weights, write_scene, tmp_path):
    shutil.copytree(Path(tiny_weights).parent, tmp_path / "weights")
    # Windows of 224, seen as 64: patches of 56 pixels.
    write_scene(tmp_path / "in" / "scene.tif", (300, 300))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "TILES": small_dataset,
        "SCENES": str(tmp_path / "in"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code_block("docs/embedding.md", "bash")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_manifest(tmp_path / "embedded").rows == 11
    with rasterio.open(tmp_path / "scenes" / "dense" / "scene.tif") as file:
        assert file.shape == (6, 6)
    assert read_manifest(tmp_path / "small").data_type == "int8"
    assert (tmp_path / "small" / "dense" / "scene.zarr" / "zarr.json").exists()


def test_the_python_runs(small_dataset, tiny_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"tiles": small_dataset, "weights": tiny_weights}
    exec(compile(code_block("docs/embedding.md", "python"), str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("11 96\nOGC:CRS84")
    assert "embedded-part-00000" in printed
    assert printed.endswith("(11, 96) ('embedding', 'y', 'x') EPSG:32633\n")
    best, *others = names["nearest"]
    assert best == (names["frame"].tile_id[0], pytest.approx(1, abs=1e-6))
    assert len(others) == 4


def test_the_page_names_every_column_and_every_field_of_the_manifest():
    text = PAGE.read_text()
    named = set(re.findall(r"`([a-z0-9_]+)`", text))
    assert set(embedding_schema(1).names) <= named
    assert {*BBOX_SIDES, *WINDOW_SIDES} <= named
    assert set(EmbeddingManifest.model_fields) <= named

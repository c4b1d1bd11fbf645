"""The source of one's own on the page about archives is a source."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from terrafm.data.archive import BadCellError
from terrafm.data.land.legend import read_legend
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.registry import open_source, source_names
from terrafm.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs/sources.md"
ALL = ("s1", "s2_l1c", "s2_l2a")


def block(language, containing=""):
    parts = PAGE.read_text().split(f"```{language}\n")[1:]
    return next(code for part in parts if containing in (code := part.split("```")[0]))


@pytest.fixture
def archive(tmp_path):
    """Three places of noise at 15 E, 45.15 N."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "numbers"
    folder.mkdir()
    for i in range(3):
        np.savez(
            folder / f"place{i}.npz",
            s1=generator.gamma(2, 0.05, (2, 192, 192)).astype(np.float32),
            s2_l2a=generator.integers(100, 5000, (12, 192, 192)).astype(np.uint16),
            epsg=32633,
            left=500_000 + 10_000 * i,
            top=5_000_000,
        )
    return folder


def test_the_example_is_a_source(archive, tmp_path, monkeypatch):
    (tmp_path / "numbers_of_the_page.py").write_text(block("python", "class NumpyFolder"))
    monkeypatch.syspath_prepend(tmp_path)
    source = open_source("numbers_of_the_page:NumpyFolder", str(archive), ALL, "")
    assert source.layout().shape == (192, 192)
    refs = source.cells()
    assert [ref.cell_id for ref in refs] == ["place0", "place1", "place2"]
    cell = source.read(refs[1])
    assert (cell.crs, cell.transform[2]) == ("EPSG:32633", 510_000)
    expected = np.load(archive / "place1.npz")["s2_l2a"]
    np.testing.assert_array_equal(np.stack(list(cell.products["s2_l2a"].bands.values())), expected)
    (archive / "place2.npz").write_bytes(b"half")
    with pytest.raises(BadCellError, match=r"place2\.npz: not such a file"):
        source.read(refs[2])


@pytest.mark.slow
def test_the_example_runs_as_it_is_written(archive, tmp_path, worldcover_tile):
    (tmp_path / "numpy_folder.py").write_text(block("python", "class NumpyFolder"))
    cover = worldcover_tile("N45E015", np.full((3000, 6000), 30, np.uint8), 33000, 0)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "ARCHIVE": str(archive),
        "WORLDCOVER": str(cover),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    # PYTHONPATH of the page is the folder with the module; the package is found as before.
    script = block("bash", "numpy_folder").replace(
        "PYTHONPATH=$PWD", 'PYTHONPATH="$PWD:$PYTHONPATH"'
    )
    environment.setdefault("PYTHONPATH", str(PAGE.parents[1]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = Dataset.open(tmp_path / "tiles")
    assert len(dataset) == 12
    assert dataset.modalities == ("s1", "s2_l2a")
    assert dataset.class_counts() == {30: 12}
    expected = np.load(archive / "place1.npz")["s2_l2a"][:, :96, 96:]
    row = list(dataset.tile_ids).index("place1_0_1")
    np.testing.assert_array_equal(dataset.read_tile(row)["s2_l2a_10m"], expected)


def test_every_built_in_source_is_on_the_page():
    for name in source_names():
        assert f"`{name}`" in PAGE.read_text()


def test_the_legend_on_the_page_is_one(tmp_path):
    path = tmp_path / "legend.yaml"
    path.write_text(block("yaml"))
    legend = read_legend(str(path))
    assert legend.translate(np.array([[1, 9]]), "here").tolist() == [[80, 30]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "no source named 'nonsense'; sources: geotiff, major-tom"),
        ("no_such_module:Class", "cannot load the source no_such_module:Class"),
        ("terrafm.errors:Nothing", "has no attribute 'Nothing'"),
        ("terrafm.errors:UsageError", r"lacks layout, cells, read\(\)"),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_source(name, str(tmp_path), ALL, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_package_may_name_its_source(monkeypatch, tmp_path):
    distribution = tmp_path / "third-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[terrafm.sources]\nnumbers = third_party:Numbers\n"
    )
    (tmp_path / "third_party.py").write_text(
        block("python", "class NumpyFolder").replace("NumpyFolder", "Numbers")
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "numbers" in source_names()
    with pytest.raises(UsageError, match=r"no \.npz file"):
        open_source("numbers", str(tmp_path / "empty"), ALL, "").cells()

"""Pipes, sockets, devices and holes are refused in one line; links to files are followed."""

import os
import re
import socket
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio

from terrafm.storage import open_file, read_bytes
from terrafm.storage.ranges import open_ranges

# What reads a file of a disk.
READERS = {
    "append_json_line": ("terrafm.storage", "append_json_line(path, {})"),
    "check_folder": ("terrafm.eval.datasets.library_files", "check_folder(os.path.dirname(path))"),
    "climate": ("terrafm.data.land.climate", "ClimateZones(path)"),
    "copy": ("terrafm.storage", "copy(path, path + '.copy')"),
    "download": ("terrafm.storage", "download(path, path + '.copy')"),
    "geotiff": ("terrafm.data.rasters.geotiff", "OpenGeotiff(path)"),
    "legend": ("terrafm.data.land.legend", "read_legend(path)"),
    "metrics": ("terrafm.train.metrics.log", "_LocalLines(path)"),
    "open_file": ("terrafm.storage", "open_file(path)"),
    "open_parquet": ("terrafm.storage.parquet", "open_parquet(path)"),
    "read_bytes": ("terrafm.storage", "read_bytes(path)"),
    "read_geotiff": ("terrafm.data.sources.raster", "read_geotiff(path)"),
    "read_json_lines": ("terrafm.storage", "read_json_lines(path)"),
    "read_parquet": ("terrafm.storage.parquet", "read_parquet(path)"),
    "read_range": ("terrafm.storage", "read_range(path, 0, 1 << 30)"),
    "read_whole": ("terrafm.data.rasters.geotiff", "read_whole(path)"),
    "ranges": (
        "terrafm.storage.ranges",
        "open_ranges(os.path.dirname(path)).read(os.path.basename(path), 0, 9)",
    ),
    "timm": ("terrafm.eval.features.peer_models", "read_state(path)"),
    "token": ("terrafm.clusters.token", "read_token(Path(path))"),
    "submit": ("terrafm.jobs.package", "_without_secrets(Path(path))"),
    "upload": ("terrafm.storage", "upload(path, path + '.copy')"),
    "weights": ("terrafm.models.weights", "load_weights(path)"),
}
KINDS = {"a pipe": "a named pipe", "a socket": "a socket", "a device": "a device"}
ERRORS = "OSError, ValueError"


@pytest.fixture
def special(tmp_path):
    """Makes what is no regular file, or a link to it, at a path."""

    def make(kind, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            # The name of a socket is short, its folder's is not.
            folder = os.open(path.parent, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
        return path

    return make


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(reader, tmp_path, special, bounded):
    module, call = READERS[reader]
    paths = [special(kind, tmp_path / str(n) / "file.tif") for n, kind in enumerate(KINDS)]
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "file.tif").symlink_to(paths[0])
    ended = bounded(
        f"import os\nfrom pathlib import Path\nfrom {module} import {call.partition('(')[0]}",
        call, *paths, tmp_path / "link" / "file.tif", errors=ERRORS, timeout=60,
    )  # fmt: skip
    assert [one.code for one in ended] == [2, 2, 2, 2]
    for one, kind in zip(ended, [*KINDS.values(), "a named pipe"], strict=True):
        assert f"file.tif is {kind}" in one.said, one
        assert "only regular files" in one.said
        assert "|" not in one.said
        assert one.grown < 200


@pytest.mark.parametrize("reader", ["read_bytes", "open_file", "ranges", "read_whole"])
def test_a_file_that_is_nearly_all_hole_takes_no_memory(reader, tmp_path, bounded):
    path = tmp_path / "file.tif"
    with path.open("wb") as file:
        file.write(b"II*\0")
        file.truncate(8 << 30)
    module, call = READERS[reader]
    (ended,) = bounded(
        f"import os\nfrom {module} import {call.partition('(')[0]}", call, path, errors="OSError"
    )
    assert ended.code == 2, ended
    assert "almost only a hole" in ended.said
    assert ended.grown < 200


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == b"content"
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"content"
    assert open_ranges(str(tmp_path)).read("link", 1, 3) == b"on"


def scene(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(300, 4000, (12, 32, 32)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", count=12, height=32, width=32, dtype="uint16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_tree_with_others_than_files_ends_in_one_line(kind, tmp_path, special, terrafm):
    scene(tmp_path / "classes" / "land" / "a.tif")
    scene(tmp_path / "classes" / "sea" / "b.tif")
    odd = special(kind, tmp_path / "classes" / "sea" / "a.tif")
    special(kind, tmp_path / "manifest.json")
    special(kind, tmp_path / "config.yaml")
    for arguments in (
        ["evaluate", "knn", "--weights", odd, "--data", tmp_path / "classes"],
        ["inspect", tmp_path],
        ["pretrain", "--config", tmp_path / "config.yaml", "--data", "x", "--output", "y"],
    ):
        code, _, said = terrafm(*arguments, timeout=60)
        assert code == 2, said
        assert "only regular files" in said
        assert len(said.strip().splitlines()) == 1, said


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_of_the_local_cluster_and_its_files(kind, tmp_path, special, monkeypatch):
    from terrafm.clusters import doctor, local, state
    from terrafm.errors import UnreadableFileError

    monkeypatch.setenv("TERRAFM_CLUSTER_DIR", str(tmp_path / "cluster"))
    special(kind, tmp_path / "cluster" / "cluster.json")
    with pytest.raises(UnreadableFileError, match=r"cluster\.json is .*only regular files"):
        state.read()
    special(kind, tmp_path / "cluster" / "keeper.log")
    with pytest.raises(UnreadableFileError, match="only regular files"):
        local._last_words()
    (tmp_path / "cluster" / "cluster.json").unlink()
    token = special(kind, tmp_path / "cluster" / "token")
    me = psutil.Process()
    cluster = state.LocalCluster(
        "127.0.0.1:1", "http://127.0.0.1:2", str(token), "/", [[me.pid, me.create_time()]]
    )
    state.write(cluster)
    for command in (local.status, lambda: list(doctor.examine(None))):
        with pytest.raises(UnreadableFileError, match=r"token is .*only regular files"):
            command()


def test_nothing_opens_a_file_to_read_but_the_places_that_look_at_it():
    """Others have to say here why what they read is this process's own."""
    own = {
        "terrafm/config/files.py": 1,  # recipes of the package
        "terrafm/data/shards/cell_cache.py": 1,  # the user's own private folder
        "terrafm/data/shards/commit.py": 1,  # just written into a folder of its own
        "terrafm/data/shards/writer.py": 2,  # the same
        "terrafm/export/graphs.py": 1,  # just written into a folder of its own
        "terrafm/export/snippets.py": 2,  # text for others
        "terrafm/jobs/package.py": 1,  # looked at before, and terrafm's own
        "terrafm/storage/durable.py": 1,  # folders
        "terrafm/storage/lease_record.py": 2,  # looks at it itself; the kernel's
        "terrafm/storage/local.py": 2,
        "terrafm/storage/parquet.py": 1,  # looked at before, in the same function
        "terrafm/train/checkpoints/staging.py": 1,  # folders
        "terrafm/train/driver/estimate.py": 1,  # the kernel's
        "terrafm/report/page.py": 2,  # that come with the package
        "terrafm/train/worker/profiler.py": 1,  # just written into a folder of its own
        "tuning/searchers.py": 1,  # a pickle of Ray Tune, see docs/security.md
    }
    reads = re.compile(
        r"[^a-z]open\([^)]*\"rb\"|O_RDONLY|\.read_bytes\(\)|"
        r"(?<!template)(?<!metadata)\.read_text\("
    )
    found = {}
    root = Path(__file__).parents[2]
    for folder in ("terrafm", "tuning", "ray_jobs"):
        for path in sorted((root / folder).rglob("*.py")):
            if count := sum(bool(reads.search(line)) for line in path.read_text().splitlines()):
                found[path.relative_to(root).as_posix()] = count
    assert found == own

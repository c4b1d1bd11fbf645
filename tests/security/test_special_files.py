"""Pipes, sockets, devices and holes are refused in one line; links to files are followed."""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

SECONDS = 60
# What reads a file of a disk, and the least that it says of it.
READERS = {
    "read_bytes": ("from terrafm.storage import read_bytes", "len(read_bytes(sys.argv[1]))"),
    "read_range": (
        "from terrafm.storage import read_range", "len(read_range(sys.argv[1], 0, 1 << 30))",
    ),
    "open_file": ("from terrafm.storage import open_file", "open_file(sys.argv[1])"),
    "download": (
        "from terrafm.storage import download", "download(sys.argv[1], sys.argv[1] + '.copy')",
    ),
    "copy": ("from terrafm.storage import copy", "copy(sys.argv[1], sys.argv[1] + '.copy')"),
    "upload": ("from terrafm.storage import upload", "upload(sys.argv[1], sys.argv[1] + '.copy')"),
    "ranges": (
        "import os\nfrom terrafm.storage.ranges import open_ranges",
        "open_ranges(os.path.dirname(sys.argv[1])).read(os.path.basename(sys.argv[1]), 0, 9)",
    ),
    "open_parquet": (
        "from terrafm.storage.parquet import open_parquet", "open_parquet(sys.argv[1])",
    ),
    "read_parquet": (
        "from terrafm.storage.parquet import read_parquet", "read_parquet(sys.argv[1])",
    ),
    "append_json_line": (
        "from terrafm.storage import append_json_line", "append_json_line(sys.argv[1], {})",
    ),
    "read_json_lines": (
        "from terrafm.storage import read_json_lines", "read_json_lines(sys.argv[1])",
    ),
    "open_geotiff": (
        "from terrafm.data.rasters.geotiff import OpenGeotiff", "OpenGeotiff(sys.argv[1])",
    ),
    "read_whole": (
        "from terrafm.data.rasters.geotiff import read_whole", "read_whole(sys.argv[1])",
    ),
    "read_geotiff": (
        "from terrafm.data.sources.raster import read_geotiff", "read_geotiff(sys.argv[1])",
    ),
    "climate": (
        "from terrafm.data.tiles.climate import ClimateZones", "ClimateZones(sys.argv[1])",
    ),
    "legend": ("from terrafm.data.tiles.legend import read_legend", "read_legend(sys.argv[1])"),
    "weights": ("from terrafm.models.weights import load_weights", "load_weights(sys.argv[1])"),
    "timm": ("from terrafm.eval.timm_rows import _read_state", "_read_state(sys.argv[1])"),
}  # fmt: skip
SPECIAL = ["pipe", "socket", "link to a device", "link to a pipe"]


@pytest.fixture
def special(tmp_path):
    """Makes a file of some kind at a path."""

    def make(kind, path):
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            # The name of a socket is short.
            here = os.getcwd()
            os.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
            os.chdir(here)
        elif kind == "link to a device":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / "a pipe")
            path.symlink_to(tmp_path / "a pipe")
        return path

    return make


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(reader, kind, tmp_path, special, bounded):
    path = special(kind, tmp_path / "file.tif")
    imports, call = READERS[reader]
    ended = bounded(imports, call, path, errors="OSError, ValueError", timeout=SECONDS)
    assert ended.code == 2, ended
    assert "only regular files" in ended.said
    assert "|" not in ended.said
    assert ended.grown < 200


@pytest.mark.parametrize("reader", ["read_bytes", "open_file", "ranges"])
def test_a_file_that_is_nearly_all_hole_takes_no_memory(reader, tmp_path, bounded):
    path = tmp_path / "file.tif"
    with path.open("wb") as file:
        file.write(b"II*\0")
        file.truncate(8 << 30)
    imports, call = READERS[reader]
    ended = bounded(imports, call, path, errors="OSError")
    assert ended.code == 2, ended
    assert "file.tif" in ended.said
    assert ended.grown < 200


def test_links_to_files_are_followed(tmp_path):
    from terrafm.storage import open_file, read_bytes
    from terrafm.storage.ranges import open_ranges

    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == b"content"
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"content"
    assert open_ranges(str(tmp_path)).read("link", 1, 3) == b"on"

"""Documents, weights and HDF5 of a few bytes: time and memory stay under the stated limits."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from terrafm.config.yaml_text import YAML_LENGTH
from terrafm.storage.limits import DOCUMENT_BYTES, JSON_CONTAINERS, JSON_VALUES, LINES_BYTES

DOCUMENTS = {
    "manifest.json": ("terrafm.data.shards.manifest", "read_manifest(os.path.dirname(path))"),
    "embedding.json": ("terrafm.embed.schema", "read_manifest(os.path.dirname(path))"),
    "complete.json": ("terrafm.train.checkpoints.store", "read_marker(os.path.dirname(path))"),
    "metadata.json": ("terrafm.data.sources.folders", "read_json(path)"),
    "dataset.json": ("terrafm.storage", "read_json(path, 'remove it')"),
    "scores.json": ("terrafm.export.model_card", "_read_scores(path)"),
    "metrics.jsonl": ("terrafm.storage", "read_json_lines(path)"),
    "legend.yaml": ("terrafm.data.land.legend", "read_legend(path)"),
    "config.yaml": ("terrafm.config.files", "_read(path, path)"),
}
ERRORS = "OSError, ValueError"


def grown_by(size):
    """A document that is longer than any: spaces, and nothing in them."""
    return b"{" + b" " * size + b"}"


def objects():
    """Empty objects: 2 bytes of text and a comma, 72 bytes of memory."""
    return b'{"a":[' + b",".join([b"{}"] * (JSON_CONTAINERS + 1)) + b"]}"


def values():
    """Short texts."""
    return b'{"a":[' + b",".join([b"01"[i % 2 :][:1] for i in range(JSON_VALUES)]) + b"]}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_bounded(name, tmp_path, bounded):
    lines = name.endswith("jsonl")
    paths = []
    for number, content in enumerate(
        (grown_by(LINES_BYTES if lines else DOCUMENT_BYTES), objects(), values())
    ):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(content)
        paths.append(path)
    module, call = DOCUMENTS[name]
    imports = f"import os\nfrom {module} import {call.partition('(')[0]}"
    for path, ended in zip(paths, bounded(imports, call, *paths, errors=ERRORS), strict=True):
        assert ended.code == 2, (path, ended)
        assert "|" not in ended.said
        assert ended.grown < 600


def test_a_document_of_ordinary_size_is_read(tmp_path, bounded):
    """As many shards as six million tiles have."""
    shard = {
        "name": "shards/v1-part-00000.parquet",
        "tiles": 64,
        "bytes": 1 << 28,
        "sha256": "0" * 64,
    }
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"shards": [shard] * 100_000}))
    (ended,) = bounded(
        "from terrafm.storage import read_json", "len(read_json(path, '')['shards'])", path
    )
    assert (ended.code, ended.said) == (0, "100000")


class Number:
    """Unpickles to so many zeros."""

    def __reduce__(self):
        return bytearray, (6_000_000_000,)


def saved(value, **options):
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


def deflated(path):
    """A gigabyte of zeros, compressed."""
    source = zipfile.ZipFile(io.BytesIO(saved({"cls_token": torch.zeros(256 << 20)})))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in source.infolist():
            archive.writestr(part.filename, source.read(part))


def expanded(path):
    """One number, three billion times."""
    path.write_bytes(saved({"cls_token": torch.zeros(1).expand(3 << 30)}))


def from_number(path):
    path.write_bytes(saved({"cls_token": Number()}))


def from_number_formerly(path):
    path.write_bytes(saved({"cls_token": Number()}, _use_new_zipfile_serialization=False))


def dicts(path):
    """Eight billion names in dicts that hold one another."""
    tree = {f"k{i}": 0 for i in range(300)}
    for _ in range(3):
        tree = {f"k{i}": tree for i in range(300)}
    path.write_bytes(saved(tree | {"cls_token": torch.zeros(1)}))


def header(path):
    """A header of safetensors that is longer than any."""
    length = DOCUMENT_BYTES + 1
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}")


@pytest.mark.parametrize(
    "bomb", [deflated, expanded, from_number, from_number_formerly, dicts, header]
)
def test_weights_stand_for_no_more_than_their_bytes(bomb, tmp_path, bounded):
    path = tmp_path / "weights.pth"
    bomb(path)
    (ended,) = bounded(
        "from terrafm.models.weights import load_weights", "load_weights(path)", path
    )
    assert ended.code == 2, ended
    assert "weights.pth" in ended.said
    assert ended.grown < 400


def test_timm_weights_are_looked_at_first(tmp_path, bounded):
    paths = [tmp_path / "deflated.pth", tmp_path / "number.pth"]
    deflated(paths[0])
    from_number(paths[1])
    imports = "from terrafm.eval.features.peer_models import read_state"
    for ended in bounded(imports, "read_state(path)", *paths):
        assert ended.code == 2, ended
        assert ended.grown < 400


@pytest.mark.parametrize("legacy", [False, True])
def test_ordinary_weights_pass(legacy, tmp_path, bounded):
    state = {"cls_token": torch.rand(4, 3).T, "step": torch.zeros(())}
    (tmp_path / "a.pth").write_bytes(saved(state, _use_new_zipfile_serialization=not legacy))
    (tmp_path / "a.safetensors").write_bytes(save({"cls_token": torch.rand(4, 3)}))
    imports = "from terrafm.models.weights import load_weights"
    call = "sorted(load_weights(path)[0])"
    for ended in bounded(imports, call, tmp_path / "a.pth", tmp_path / "a.safetensors"):
        assert ended.code == 0, ended


def test_yaml_is_refused_before_it_takes_minutes(tmp_path, bounded):
    path = tmp_path / "legend.yaml"
    path.write_text("names:\n" + "".join(f" {i}: a\n" for i in range(YAML_LENGTH // 8)))
    (ended,) = bounded(
        "from terrafm.data.land.legend import read_legend", "read_legend(path)", path, timeout=30
    )
    assert ended.code == 2
    assert f"longer than {YAML_LENGTH:,}" in ended.said


def hdf5(path, make):
    h5py = pytest.importorskip("h5py", reason="h5py comes with terrafm[eval], terrafm[copernicus]")
    with h5py.File(path, "w") as file:
        make(file, h5py)
    return path


HDF5 = {
    "claims": lambda f, _: f.create_dataset("a", (10**6, 10**5), "f8", chunks=(100, 100)),
    "a chunk claims": lambda f, _: f.create_dataset(
        "a", (10,), "f8", maxshape=(None,), chunks=(10**8,)
    ),
    "a link": lambda f, h5py: f.__setitem__("a", h5py.ExternalLink("private.h5", "a")),
    "external data": lambda f, _: f.create_dataset(
        "a", (10,), "u1", external=[("/etc/hostname", 0, 10)]
    ),
}


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_holds_its_own_data(kind, tmp_path, bounded):
    hdf5(tmp_path / "set.h5", HDF5[kind])
    (ended,) = bounded(
        "from terrafm.eval.datasets.library_files import check_folder",
        "check_folder(path)",
        tmp_path,
    )
    assert ended.code == 2, ended
    assert "set.h5" in ended.said


def test_ordinary_hdf5_passes(tmp_path, bounded):
    def make(file, _):
        file.create_dataset("a", data=np.ones((100, 100)), compression="gzip", shuffle=True)
        file.create_group("b")["above"] = file["/"]

    hdf5(tmp_path / "set.h5", make)
    (ended,) = bounded(
        "from terrafm.eval.datasets.library_files import check_folder",
        "check_folder(path)",
        tmp_path,
    )
    assert ended.code == 0, ended


def test_a_folder_for_another_library_holds_tiffs_alone(tmp_path, bounded):
    (tmp_path / "image.tif").write_text("<VRTDataset rasterXSize='8' rasterYSize='8'/>")
    (ended,) = bounded(
        "from terrafm.eval.datasets.library_files import check_folder",
        "check_folder(path)",
        tmp_path,
    )
    assert ended.code == 2
    assert "image.tif: it is no TIFF" in ended.said

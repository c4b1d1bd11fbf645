"""The index: what it finds beside exact search, and what of it cannot be trusted."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import s3fs

from terrafm.embed.schema import MANIFEST, read_manifest
from terrafm.embed.source import DatasetTiles
from terrafm.errors import TerraFMError, UsageError
from terrafm.search import index, index_build
from terrafm.search.embeddings import Embeddings
from terrafm.search.index import Index, find_index
from terrafm.search.index_build import build_index
from terrafm.search.recall import MORE, NEAREST, Truth
from terrafm.search.similar import find_similar

ROWS, DIM = 3000, 48


def clustered(rows=ROWS, dim=DIM, seed=0):
    """Unit-free vectors in thirty clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, dim))
    return (centres[rng.integers(0, 30, rows)] + 0.2 * rng.normal(size=(rows, dim))).astype("f4")


@pytest.fixture(scope="module")
def place(small_dataset):
    return DatasetTiles(small_dataset).place(0)


@pytest.fixture
def folder_of(write, place, tmp_path):
    """Writes vectors as a folder of embeddings; tiles are named by their rows."""

    def make(vectors, rows=700, **given):
        places = [replace(place, tile_id=f"tile_{row:05d}") for row in range(len(vectors))]
        return write(str(tmp_path / "out"), places, vectors, data="data", rows=rows, **given)

    return make


@pytest.fixture
def indexed(folder_of):
    """A folder of clustered vectors with its index."""
    folder = folder_of(clustered())
    build_index(Embeddings(folder))
    return folder


def test_it_finds_what_exact_search_finds(indexed):
    missed = 0
    for row in range(0, ROWS, 100):
        tile = f"tile_{row:05d}"
        exact = find_similar(indexed, tile, count=10, index=False)
        found = find_similar(indexed, tile, count=10)
        assert (exact["index"], found["tiles"]) == (None, exact["tiles"])
        by_id = {n["tile_id"]: n["similarity"] for n in exact["neighbours"]}
        here = [n for n in found["neighbours"] if n["tile_id"] in by_id]
        missed += 10 - len(here)
        # Those that both found have one similarity: it is compared exactly in the end.
        assert all(by_id[n["tile_id"]] == n["similarity"] for n in here)
        assert [n["rank"] for n in found["neighbours"]] == list(range(1, 11))
    assert missed / 300 <= 0.05


def test_the_record_states_what_it_finds(indexed):
    record = find_index(indexed, read_manifest(indexed))
    assert record.recall >= index_build.WANTED_RECALL
    assert record.rows == record.indexed == ROWS
    assert record.queries >= 256
    # By hand, over other rows.
    vectors = clustered()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    opened, shares = Index(indexed, record), []
    for row in range(7, ROWS, 30):
        real = [r for r in np.argsort(-unit @ unit[row], kind="stable") if r != row][:NEAREST]
        found = [r for r in opened.search(vectors[row], NEAREST + MORE + 1).rows if r != row]
        shares.append(len(set(real) & set(found)) / NEAREST)
    assert np.mean(shares) == pytest.approx(record.recall, abs=0.03)


def test_truth_is_that_of_all_rows_in_any_batches():
    rng = np.random.default_rng(1)
    vectors = index.unit(rng.normal(size=(200, 5)).astype(np.float32))
    known = np.arange(200) % 7 != 0
    own = np.array([1, 50, 199])
    truth = Truth(vectors[own], own)
    for first, stop in ((0, 3), (3, 120), (120, 200)):
        truth.add(first, vectors[first:stop], known[first:stop])

    class Exact:
        def search(self, query, count):
            similarities = np.where(known, query @ vectors.T, -2.0)
            order = np.argsort(-similarities, axis=1)[:, :count]
            return np.take_along_axis(similarities, order, 1), order

    shares, times = truth.compared(Exact())
    assert shares.tolist() == [1, 1, 1]
    assert len(times) == 3


def test_int8_and_rows_without_direction_and_standardised_ones(folder_of, indexed, tmp_path):
    """What is left out, and what is compared, is what exact search leaves out and compares."""
    shutil.rmtree(Path(indexed).parent / "out")
    vectors = clustered()
    vectors[::50] = 0
    vectors[1, 3] = np.nan
    # Numbers that differ in scale: without standardising the first would decide.
    vectors[:, 0] *= 1000
    folder = folder_of(vectors, readout="mean+std")
    record = build_index(Embeddings(folder))
    exact = find_similar(folder, "tile_00007", count=20, index=False)
    found = find_similar(folder, "tile_00007", count=20)
    assert record.indexed == ROWS - found["without_direction"]
    assert found["without_direction"] == exact["without_direction"]
    ids = [n["tile_id"] for n in exact["neighbours"]]
    assert len({n["tile_id"] for n in found["neighbours"]} & set(ids)) >= 19
    with pytest.raises(TerraFMError, match="has no direction"):
        find_similar(folder, "tile_00001", count=5)


@pytest.mark.parametrize("rows", [1, 2, 11])
def test_a_small_folder_has_one_too(folder_of, rows):
    folder = folder_of(clustered(rows))
    found = find_similar(folder, "tile_00000", count=16, index=True)
    assert found["index"]["built"]
    assert len(found["neighbours"]) == rows - 1
    again = find_similar(folder, "tile_00000", count=16, index=True)
    assert not again["index"]["built"]


def test_a_folder_without_any_direction_is_refused(folder_of):
    folder = folder_of(np.zeros((20, 4), np.float32))
    with pytest.raises(TerraFMError, match="has a direction"):
        build_index(Embeddings(folder))


def test_the_command_builds_it_once_and_says_how_good_it_is(run, indexed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(Path(indexed) / "search")
    code, text, _ = run("search", indexed, "--tile", "tile_00000", "-k", "3", "--index")
    assert code == 0
    lines = text.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("by its index, which finds ")]
    assert lines[at].endswith(" % of the 10 nearest; --exact looks at all")
    assert lines[at + 1].startswith("building it took ")
    assert max(map(len, lines[at : at + 2])) <= 80
    code, text, _ = run("search", indexed, "--tile", "tile_00000", "-k", "3")
    assert "by its index, which finds " in text
    assert "building" not in text
    code, text, _ = run("search", indexed, "--tile", "tile_00000", "-k", "3", "--exact")
    assert "by its index" not in text


def test_an_index_of_other_embeddings(indexed, refused, tmp_path, folder_of):
    kept = tmp_path / "kept"
    shutil.copytree(Path(indexed) / "search", kept)
    shutil.rmtree(indexed)
    folder = folder_of(clustered(seed=1))
    shutil.copytree(kept, Path(folder) / "search")
    old = sorted(path.name for path in kept.iterdir())
    line = refused("search", folder, "--tile", "tile_00000")
    assert (
        "is of other embeddings: terrafm search --index builds it anew, --exact needs none" in line
    )
    assert find_similar(folder, "tile_00000", count=3, index=False)["index"] is None
    assert find_similar(folder, "tile_00000", count=3, index=True)["index"]["built"]
    # The files of the old one are gone.
    here = sorted(path.name for path in (Path(folder) / "search").iterdir())
    assert len(here) == len(old)
    assert set(here) & set(old) <= {"index.json", ".lease"}


def test_a_moved_folder_keeps_its_index(indexed, tmp_path):
    shutil.move(indexed, tmp_path / "moved")
    assert find_similar(tmp_path / "moved", "tile_00000", count=3)["index"] is not None


def edit(record, **changes):
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


DAMAGE = {
    "no list": (lambda files: files["lists"].unlink(), "No such file"),
    "a short list": (lambda files: cut(files["lists"]), "bytes, not"),
    "short ids": (lambda files: cut(files["ids"]), "bytes, not"),
    "short arrays": (lambda files: cut(files["arrays"]), "arrays.safetensors"),
    "another number of lists": (lambda files: edit(files["record"], lists=7), "another shape"),
    "more rows than there are": (
        lambda files: edit(files["record"], indexed=ROWS - 1), "bytes, not|do not add up"),
    "a name that leads elsewhere": (
        lambda files: edit(files["record"], key="../../../../"), "key: .*pattern"),
    "no record": (lambda files: files["record"].write_text("{"), "is not readable"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_one_line_before_faiss_sees_it(indexed, refused, damage):
    place = Path(indexed) / "search"
    record = place / "index.json"
    key = json.loads(record.read_text())["key"]
    names = {"lists": "lists.bin", "ids": "ids.bin", "arrays": "arrays.safetensors"}
    files = {name: place / f"{key}-{file}" for name, file in names.items()} | {"record": record}
    change, message = DAMAGE[damage]
    change(files)
    line = refused("search", indexed, "--tile", "tile_00000")
    assert re.search(message, line)
    assert "--index builds it anew" in line
    # As it says.
    found = find_similar(indexed, "tile_00000", count=3, index=True)
    assert found["index"]["built"]
    assert len(found["neighbours"]) == 3


def test_rows_that_a_damaged_list_names_are_not_looked_for(indexed):
    record = find_index(indexed, read_manifest(indexed))
    lists = Path(indexed) / "search" / f"{record.key}-lists.bin"
    lists.write_bytes(b"\xff" * lists.stat().st_size)
    assert Index(indexed, record).search(clustered()[0], 5).rows == []


def test_without_faiss_it_says_what_to_install(indexed, refused, monkeypatch):
    monkeypatch.setattr(index, "find_spec", lambda name: None)
    line = refused("search", indexed, "--tile", "tile_00000", "--index")
    assert "pip install 'terrafm[search]', or --exact" in line
    assert find_similar(indexed, "tile_00000", count=2, index=False)["neighbours"]


def test_a_folder_in_a_store_has_none(refused, embeddings, s3_bucket):
    s3fs.S3FileSystem().put(embeddings, f"{s3_bucket}/out", recursive=True)
    line = refused("search", f"{s3_bucket}/out", "--tile", "tile_05", "--index")
    assert "lies in a store" in line


def test_no_room_is_said_before_any_work(indexed, monkeypatch):
    shutil.rmtree(Path(indexed) / "search")
    usage = shutil.disk_usage(indexed)._replace(free=1000)
    monkeypatch.setattr(index_build.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match="make room, or take --exact"):
        build_index(Embeddings(indexed))


def test_a_killed_builder_leaves_nothing_that_is_used(indexed, monkeypatch):
    """Its files are there, its record is not: the next one begins anew and clears them away."""
    shutil.rmtree(Path(indexed) / "search")
    monkeypatch.setattr(index_build, "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(Embeddings(indexed))
    assert find_similar(indexed, "tile_00000", count=3)["index"] is None
    left = Path(indexed) / "search" / "0123456789ab-lists.bin.half"
    left.write_bytes(b"half")
    monkeypatch.undo()
    build_index(Embeddings(indexed))
    names = {path.name.partition("-")[2] for path in (Path(indexed) / "search").iterdir()}
    assert names - {""} == {"arrays.safetensors", "lists.bin", "ids.bin"}


def test_the_fingerprint_is_of_the_files(indexed):
    manifest = read_manifest(indexed)
    part = manifest.parts[0].model_copy(update={"sha256": "0" * 64})
    other = manifest.model_copy(update={"parts": (part, *manifest.parts[1:])})
    assert index.fingerprint(other) != index.fingerprint(manifest)
    text = (Path(indexed) / MANIFEST).read_text()
    (Path(indexed) / MANIFEST).write_text(" " + text)
    assert find_index(indexed, read_manifest(indexed)) is not None

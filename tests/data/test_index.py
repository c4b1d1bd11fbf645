"""The index in parts answers as the whole table would, from a disk and from a store."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.data.shards import index as module
from terrafm.data.shards.index import Index, fingerprint, write_index
from terrafm.data.shards.manifest import StoredFile
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import remove, write_bytes

NAMES = ["tile_id", "land_cover", "latitude"]


def rows_of(count):
    ids = sorted(f"{7919 * i % 10_000}U_{i}" for i in range(count))
    return pa.table(
        {
            "tile_id": ids,
            "shard": [f"shards/part-{i // 7:05d}.parquet" for i in range(count)],
            "crs": ["EPSG:32633"] * count,
            "land_cover": np.arange(count, dtype=np.int32) % 11,
            "latitude": np.linspace(-80, 80, count),
            "s1_10m.offset": np.arange(count, dtype=np.int64) * 1000,
        }
    )


def stored(content, count):
    digest = hashlib.sha256(content).hexdigest()
    return StoredFile(name="index-1.parquet", tiles=count, bytes=len(content), sha256=digest)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Bytes of an index of 1,000 rows in row groups of 64, and its table."""
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 64)
    table = rows_of(1000)
    order = np.random.default_rng(0).permutation(1000)
    shuffled = table.take(order)
    parts = [shuffled.slice(0, 300), shuffled.slice(300, 1), shuffled.slice(301)]
    write_index(tmp_path / "index", parts, np.argsort(order))
    return (tmp_path / "index").read_bytes(), table


@pytest.fixture(params=["whole", "local", "store"])
def opened(request, written, tmp_path, monkeypatch):
    """The index by each of the three ways to open it, and its table."""
    content, table = written
    uri = "memory://index" if request.param == "store" else str(tmp_path / "dataset")
    if request.param != "whole":
        monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    write_bytes(f"{uri}/index-1.parquet", content)
    yield Index.open(uri, stored(content, 1000)), table
    remove(uri)


def test_parts_equal_the_whole(opened):
    index, table = opened
    assert len(index) == 1000
    assert index.table().equals(table)
    assert index.column_names == table.column_names
    assert sum(chunk.num_rows for chunk in index.chunks(["crs"])) == 1000

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 999), max_size=60))
    def check(rows):
        assert index.take(rows, NAMES).equals(table.select(NAMES).take(pa.array(rows, pa.int64())))
        ids = table["tile_id"].take(pa.array(rows, pa.int64())).to_pylist()
        assert index.find([*ids, "nowhere", "", "~"]).tolist() == [*rows, -1, -1, -1]

    check()
    for name in table.column_names:
        np.testing.assert_array_equal(index.column(name), table[name].to_numpy())
    assert index.notes(777, NAMES) == table.select(NAMES).slice(777, 1).to_pylist()[0]
    for rows in ([1000], [-1]):
        with pytest.raises(IndexError, match="from 0 to 999"):
            index.take(rows, NAMES)


def test_the_fingerprint_depends_on_content_alone(written, tmp_path):
    _, table = written
    by_groups = Index.of_table(table)
    write_index(tmp_path / "other", [table], np.arange(1000))
    head = {"gsd": 10}
    expected = fingerprint(by_groups, head)
    moved = table.set_column(5, "s1_10m.offset", pa.array(np.zeros(1000, np.int64)))
    assert fingerprint(Index.of_table(moved), head) == expected
    changed = table.set_column(3, "land_cover", pa.array(np.zeros(1000, np.int32)))
    assert fingerprint(Index.of_table(changed), head) != expected
    assert fingerprint(by_groups, {"gsd": 20}) != expected


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_damage_is_found_when_it_is_read(written, tmp_path, monkeypatch, limit):
    content, _ = written
    monkeypatch.setattr(module, "_WHOLE_BYTES", limit)
    uri, where = str(tmp_path / "dataset"), f"{tmp_path}/dataset/index-1.parquet"
    flipped = bytearray(content)
    # In the pages of some row group, far from the footer.
    flipped[len(content) // 3] ^= 16
    write_bytes(where, bytes(flipped))
    with pytest.raises(TerraFMError, match=r"index-1\.parquet .*restore it or ingest again"):
        Index.open(uri, stored(content, 1000)).table()
    write_bytes(where, content[:-9])
    with pytest.raises(UsageError, match="does not match the manifest"):
        Index.open(uri, stored(content, 1000))
    with pytest.raises(UsageError, match="cannot read the dataset's index"):
        Index.open(f"{uri}/nowhere", stored(content, 1000))


def test_a_damaged_download_is_refused(written, monkeypatch):
    content, _ = written
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    write_bytes("memory://index/index-1.parquet", content[:500] + b"?" + content[501:])
    try:
        with pytest.raises(UsageError, match="does not match the manifest"):
            Index.open("memory://index", stored(content, 1000))
    finally:
        remove("memory://index")

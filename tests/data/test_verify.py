"""Every kind of damage is found, named by file, tile and cell, and nothing else is."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terrafm.data.ingest.adopt import record_of
from terrafm.data.shards import checking as shard_check
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.verify import summary, verify
from terrafm.data.shards.writer import read_shard_entry, write_shard
from terrafm.errors import UsageError
from terrafm.storage import read_bytes, remove, write_bytes

SHARD = "shards/part-00001.parquet"


@pytest.fixture
def copy(small_dataset, tmp_path):
    return Path(shutil.copytree(small_dataset, tmp_path / "copy"))


def found(uri, **options):
    result = verify(str(uri), **options)
    return [(f["shard"], f["tile"], f["cell"], f["why"]) for f in result["faults"]]


def cell_range(uri, tile, cell):
    dataset = Dataset.open(uri)
    place = dataset.locations([dataset.row_of(tile)]).to_pylist()[0]
    start = place[f"{cell}.offset"]
    return place["shard"], start, start + place[f"{cell}.length"]


@pytest.mark.parametrize("threads", [1, 5])
def test_a_whole_dataset_has_no_faults(small_dataset, threads):
    steps = []
    result = verify(small_dataset, threads=threads, progress=lambda *step: steps.append(step))
    assert result["faults"] == []
    assert (result["shards"], result["tiles"], result["version"]) == (3, 11, 1)
    assert result["versions"] == [
        {"version": 1, "tiles": 11, "fingerprint": Dataset.open(small_dataset).fingerprint}
    ]
    assert steps[-1] == (3, 3)
    assert "is whole: 11 tiles in 3 shards" in summary(result)


def test_any_flipped_bit_of_a_cell_is_named(copy):
    whole = (copy / SHARD).read_bytes()

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.sampled_from([f"tile_{i:02d}" for i in (4, 5, 6, 7)]),
        st.sampled_from([g.name for g in Dataset.open(copy).groups]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
    )
    def check(tile, cell, where, bit):
        _, start, stop = cell_range(copy, tile, cell)
        damaged = bytearray(whole)
        damaged[start + int(where * (stop - start))] ^= 1 << bit
        (copy / SHARD).write_bytes(damaged)
        assert found(copy) == [
            (SHARD, tile, cell, f"does not match its CRC-32 (bytes {start} to {stop})")
        ]

    check()
    (copy / SHARD).write_bytes(whole)
    assert found(copy) == []


def test_a_bit_outside_the_cells_is_found(copy):
    content = bytearray((copy / SHARD).read_bytes())
    content[1] ^= 1
    (copy / SHARD).write_bytes(content)
    assert found(copy) == [
        (SHARD, "", "", "does not match its SHA-256, though all of its cells are whole")
    ]


def test_a_truncated_shard_names_the_cells_that_are_lost(copy):
    size = (copy / SHARD).stat().st_size
    _, start, _ = cell_range(copy, "tile_06", "s2_l1c_20m")
    with (copy / SHARD).open("r+b") as file:
        file.truncate(start + 10)
    faults = found(copy)
    assert faults[0] == (SHARD, "", "", f"is cut short: {start + 10} bytes, written with {size}")
    lost = {(tile, cell) for _, tile, cell, _ in faults[1:]}
    assert ("tile_06", "s2_l1c_20m") in lost
    assert {cell for tile, cell in lost if tile == "tile_07"} == {
        g.name for g in Dataset.open(copy).groups
    }
    assert not {tile for tile, _ in lost} & {"tile_04", "tile_05"}


def test_missing_and_swapped_shards(copy):
    other = copy / "shards/part-00000.parquet"
    one, two = (copy / SHARD).read_bytes(), other.read_bytes()
    (copy / SHARD).unlink()
    assert found(copy) == [(SHARD, "", "", "is missing")]
    (copy / SHARD).write_bytes(two)
    other.write_bytes(one)
    assert {shard for shard, *_ in found(copy)} == {SHARD, "shards/part-00000.parquet"}


def test_an_index_out_of_step_with_its_shard(copy):
    """A shard written again under the index of the first: whole in itself, but another one."""
    dataset = Dataset.open(copy)
    records = [
        record_of(dataset.index.slice(row, 1).to_pylist()[0], dataset.read_tile(row))
        for row in (7, 4, 5, 6)
    ]
    records[1].tile_id = "tile_99"
    entry = write_shard(str(copy), "part-00001", records, dataset.groups)
    assert (SHARD, "", "", "is missing") not in found(copy)
    # Even where the manifest vouches for the new file.
    text = (copy / "manifest.json").read_text()
    old = next(shard for shard in dataset.manifest.shards if shard.name == SHARD)
    for name in ("manifest.json", "manifest-1.json"):
        vouched = text.replace(old.sha256, entry.sha256).replace(
            f'"bytes": {old.bytes}', f'"bytes": {entry.bytes}'
        )
        (copy / name).write_text(vouched)
    faults = found(copy)
    assert {shard for shard, *_ in faults} == {SHARD}
    assert (SHARD, "tile_99", "", "is in the shard, but not in the index") in faults
    assert (SHARD, "tile_04", "", "is in the index, but not in the shard") in faults
    assert any(tile == "tile_07" and "by the index at" in what for _, tile, _, what in faults)


def test_damage_to_index_and_manifest(copy):
    index = copy / "index-1.parquet"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + b"?")
    (fault,) = found(copy)
    assert fault[0] == "index-1.parquet"
    assert "does not match the manifest" in fault[3]
    index.write_bytes(whole)
    text = (copy / "manifest.json").read_text()
    for name in ("manifest.json", "manifest-1.json"):
        (copy / name).write_text(text.replace('"class 10"', '"class ten"'))
    assert [f[3] for f in found(copy)] == [
        "its content and the manifest's do not give the fingerprint"
    ]
    (copy / "manifest.json").write_text(text)
    (copy / "manifest-1.json").unlink()
    assert found(copy)[0][0] == "manifest-1.json"


def test_another_version_and_another_store(small_dataset):
    uri = "memory://verify/dataset"
    for path in sorted(Path(small_dataset).rglob("*")):
        if path.is_file():
            write_bytes(f"{uri}/{path.relative_to(small_dataset)}", path.read_bytes())
    try:
        assert verify(uri, 1)["faults"] == []
        with pytest.raises(UsageError, match="no version 2"):
            verify(uri, 2)
        content = bytearray(read_bytes(f"{uri}/{SHARD}"))
        _, start, _ = cell_range(uri, "tile_05", "s1_10m")
        content[start + 3] ^= 128
        write_bytes(f"{uri}/{SHARD}", bytes(content))
        assert [f[:3] for f in found(uri)] == [(SHARD, "tile_05", "s1_10m")]
    finally:
        remove("memory://verify")


def test_cells_across_blocks_are_summed(small_dataset, monkeypatch):
    monkeypatch.setattr(shard_check, "_BLOCK_BYTES", 1000)
    assert found(small_dataset) == []


def test_the_parquet_rows_are_those_of_the_entry(small_dataset):
    # What verify compares is really there: the ids in the file, in the order of the entry.
    entry = read_shard_entry(small_dataset, "part-00001")
    table = pq.read_table(f"{small_dataset}/{SHARD}", columns=["tile_id"])
    assert table["tile_id"].to_pylist() == entry.rows["tile_id"].to_pylist()
    assert np.all(entry.rows["s1_10m.length"].to_numpy() > 0)

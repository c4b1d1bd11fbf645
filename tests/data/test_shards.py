import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.data.shards import codec
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import TileRecord
from terrafm.data.shards.manifest import CellGroup, with_codec
from terrafm.data.shards.writer import read_shard_entry, write_shard
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import read_bytes, remove, write_bytes

S2_10M = ("B02", "B03", "B04", "B08")
GROUPS = (
    CellGroup("s1", 10, ("VV", "VH"), 24, 24),
    CellGroup("s2_l2a", 10, S2_10M, 24, 24),
    CellGroup("s2_l2a", 60, ("B01", "B09"), 4, 4),
)
STATISTICS = {
    "s1": {"bands": ["VV", "VH"], "mean": [-12.0, -19.0], "std": [3.0, 4.0]},
    "s2_l2a": {"bands": [*S2_10M, "B01", "B09"], "mean": [0.1] * 6, "std": [0.05] * 6},
}


def tile(number, absent=()):
    generator = np.random.default_rng(number)
    arrays = {
        g.name: generator.integers(1, 3000, g.shape).astype(g.dtype)
        for g in GROUPS
        if g.modality not in absent
    }
    return TileRecord(
        tile_id=f"{number}U_{7 * number % 10}R_0_0",
        arrays=arrays,
        land_cover=(10, 30, 80)[number % 3],
        histogram={80: 76, 10: 500},
        crs="EPSG:32633",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0 + number),
        latitude=45.0 + number,
        longitude=15.0 - number,
        products={m: {"product_id": f"P{number}", "offset": 1000} for m in ("s2_l2a",)},
    )


def commit(uri, entries, **changes):
    settings = {
        "tile_size": 24,
        "gsd": 10,
        "groups": GROUPS,
        "statistics": STATISTICS,
        "legend": {10: "tree cover", 30: "grassland", 80: "water"},
        "report": {"kept": 6},
    }
    return commit_dataset(uri, entries, **(settings | changes))


def build(uri, numbers=range(6), per_shard=3, absent=(), groups=GROUPS):
    numbers = list(numbers)
    entries = [
        write_shard(
            uri, f"part-{i:05d}", [tile(n, absent) for n in numbers[i : i + per_shard]], groups
        )
        for i in range(0, len(numbers), per_shard)
    ]
    return commit(uri, entries, groups=groups)


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "dataset")
    else:
        yield f"memory://{tmp_path.name}/dataset"
        remove(f"memory://{tmp_path.name}")


def test_round_trip(uri):
    build(uri, absent=())
    dataset = Dataset.open(uri)
    assert len(dataset) == 6
    assert dataset.modalities == ("s1", "s2_l2a")
    assert dataset.groups == GROUPS
    assert list(dataset.tile_ids) == sorted(tile(n).tile_id for n in range(6))
    assert dataset.class_counts() == {10: 2, 30: 2, 80: 2}
    assert dataset.available.all()
    assert dataset.statistics["s1"]["mean"] == (-12.0, -19.0)
    by_id = {tile(n).tile_id: tile(n) for n in range(6)}
    for row, tile_id in enumerate(dataset.tile_ids):
        expected = by_id[tile_id]
        pixels = dataset.read_tile(row)
        assert set(pixels) == {g.name for g in GROUPS}
        for name, array in pixels.items():
            np.testing.assert_array_equal(array, expected.arrays[name])
            assert array.dtype == expected.arrays[name].dtype
        described = dataset.tile(row)
        assert described["transform"] == expected.transform
        assert described["products"] == expected.products
        assert described["histogram"] == expected.histogram
        assert dataset.land_cover[row] == expected.land_cover
        assert dataset.latitude[row] == expected.latitude
    assert set(dataset.read_tile(0, ["s1"])) == {"s1_10m"}


def test_the_codec_stands_with_the_cell_group(uri):
    mixed = (*with_codec(GROUPS[:1], "pcodec"), *GROUPS[1:])
    build(uri, groups=mixed)
    dataset = Dataset.open(uri)
    assert [g.codec.partition(":")[0] for g in dataset.groups] == ["pcodec", "blosc2", "blosc2"]
    schema = pq.read_schema(pa.BufferReader(read_bytes(f"{uri}/shards/part-00000.parquet")))
    for group in mixed:
        assert schema.field(group.name).metadata[b"codec"].decode() == group.codec
    by_id = {tile(n).tile_id: tile(n) for n in range(6)}
    for row, tile_id in enumerate(dataset.tile_ids):
        for name, pixels in dataset.read_tile(row).items():
            np.testing.assert_array_equal(pixels, by_id[tile_id].arrays[name])


def test_a_manifest_of_format_1_is_still_read(uri):
    manifest = build(uri)
    old = json.loads(manifest.to_json()) | {"format_version": 1, "codec": codec.DEFAULT_CODEC}
    for group in old["groups"]:
        del group["codec"]
    write_bytes(f"{uri}/manifest.json", json.dumps(old).encode())
    dataset = Dataset.open(uri)
    assert dataset.manifest == manifest
    assert dataset.read_tile(0).keys() == {g.name for g in GROUPS}


def test_absent_modality(uri):
    build(uri, absent=("s1",))
    dataset = Dataset.open(uri)
    np.testing.assert_array_equal(dataset.available, [[False, True]] * 6)
    assert set(dataset.read_tile(2)) == {"s2_l2a_10m", "s2_l2a_60m"}
    assert dataset.read_tile(2, ["s1"]) == {}


def test_any_parquet_reader_opens_a_shard(tmp_path):
    build(str(tmp_path))
    table = pq.read_table(tmp_path / "shards" / "part-00000.parquet")
    assert table.num_rows == 3
    cell = table["s2_l2a_10m"][1].as_py()
    field = table.schema.field("s2_l2a_10m")
    pixels = codec.decode(
        cell, tuple(json.loads(field.metadata[b"shape"])), field.metadata[b"dtype"].decode()
    )
    assert field.metadata[b"codec"].decode() == codec.DEFAULT_CODEC
    np.testing.assert_array_equal(pixels, tile(1).arrays["s2_l2a_10m"])


def test_same_tiles_give_the_same_bytes_and_fingerprint(tmp_path):
    first = build(str(tmp_path / "a"))
    again = build(str(tmp_path / "b"))
    assert first == again
    for file in sorted((tmp_path / "a").rglob("*")):
        if file.is_file():
            twin = tmp_path / "b" / file.relative_to(tmp_path / "a")
            assert file.read_bytes() == twin.read_bytes(), file
    # Another division into shards is the same content.
    assert build(str(tmp_path / "c"), per_shard=2).fingerprint == first.fingerprint
    assert build(str(tmp_path / "d"), numbers=range(5)).fingerprint != first.fingerprint


def test_a_further_commit_is_a_new_version_and_keeps_the_old_one(uri):
    old = build(uri)
    assert build(uri).version == 1
    entries = [read_shard_entry(uri, f"part-{i:05d}") for i in (0, 3)]
    entries.append(write_shard(uri, "part-00006", [tile(6)], GROUPS))
    new = commit(uri, entries)
    assert (old.version, new.version) == (1, 2)
    assert len(Dataset.open(uri)) == 7
    assert Dataset.open(uri, version=1).fingerprint == old.fingerprint
    assert len(Dataset.open(uri, version=1)) == 6
    with pytest.raises(UsageError, match="no version 3"):
        Dataset.open(uri, version=3)


def test_entry_survives_and_carries_extra(uri):
    extra = {}

    def records():
        for n in range(2):
            extra["seen"] = n + 1
            yield tile(n)

    written = write_shard(uri, "part-00000", records(), GROUPS, extra)
    entry = read_shard_entry(uri, "part-00000")
    assert entry.extra == {"seen": 2}
    assert entry.rows.equals(written.rows)
    assert (entry.bytes, entry.sha256) == (written.bytes, written.sha256)
    assert read_shard_entry(uri, "part-00001") is None
    write_bytes(f"{uri}/{entry.path}", read_bytes(f"{uri}/{entry.path}")[:-1])
    assert read_shard_entry(uri, "part-00000") is None
    write_bytes(f"{uri}/entries/part-00000.arrow", b"ARROW1 but not really")
    assert read_shard_entry(uri, "part-00000") is None


def test_a_shard_without_tiles_has_an_entry_and_no_file(tmp_path):
    write_shard(str(tmp_path), "part-00000", [], GROUPS, {"quarantine": ["x"]})
    entry = read_shard_entry(str(tmp_path), "part-00000")
    assert entry.extra == {"quarantine": ["x"]}
    assert not (tmp_path / "shards" / "part-00000.parquet").exists()
    with pytest.raises(TerraFMError, match="no usable tile"):
        commit(str(tmp_path), [entry])


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def records():
        yield tile(0)
        raise RuntimeError("lost the archive")

    with pytest.raises(RuntimeError):
        write_shard(str(tmp_path), "part-00000", records(), GROUPS)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    wrong = tile(0)
    wrong.arrays["s1_10m"] = wrong.arrays["s1_10m"][:, :5]
    with pytest.raises(TerraFMError, match=r"0U_0R_0_0: s1_10m is int16 \(2, 5, 24\)"):
        write_shard(str(tmp_path), "part-00000", [wrong], GROUPS)


def test_commit_clears_what_killed_writers_left(tmp_path):
    number = "0123456789abcdef" * 2
    for name in ("shards/.part-00000.parquet", "entries/.part-00000.arrow"):
        half = tmp_path / f"{name}.{number}"
        half.parent.mkdir()
        half.write_bytes(b"half")
    build(str(tmp_path))
    assert not list((tmp_path / "entries").glob(".*"))
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == [
        "part-00000.parquet",
        "part-00003.parquet",
    ]


def test_repeated_tile_ids_are_refused(tmp_path):
    entries = [write_shard(str(tmp_path), name, [tile(1)], GROUPS) for name in ("a", "b")]
    with pytest.raises(TerraFMError, match=r"1U_7R_0_0 occurs twice, in shards/a.*shards/b"):
        commit(str(tmp_path), entries)


def test_damage_is_named(uri):
    build(uri)
    shard = f"{uri}/shards/part-00000.parquet"
    whole = read_bytes(shard)
    dataset = Dataset.open(uri)
    row = int(np.flatnonzero(dataset.tile_ids == tile(1).tile_id)[0])
    offset = dataset.index["s2_l2a_10m.offset"][row].as_py()

    flipped = bytearray(whole)
    flipped[offset + 50] ^= 1
    write_bytes(shard, bytes(flipped))
    with pytest.raises(TerraFMError, match=r"1U_7R_0_0: s2_l2a_10m .*checksum.*part-00000"):
        Dataset.open(uri).read_tile(row)
    Dataset.open(uri).read_tile(row, ["s1"])

    write_bytes(shard, whole[: offset + 20])
    with pytest.raises(TerraFMError, match=r"1U_7R_0_0.*part-00000"):
        Dataset.open(uri).read_tile(row)

    remove(shard)
    with pytest.raises(TerraFMError, match=r"1U_7R_0_0.*part-00000.*is missing"):
        Dataset.open(uri).read_tile(row)


def test_what_is_not_a_dataset_is_one_clear_line(uri):
    with pytest.raises(UsageError, match="does not exist"):
        Dataset.open(uri)
    write_bytes(f"{uri}/readme.txt", b"hello")
    with pytest.raises(UsageError, match="not a TerraFM dataset"):
        Dataset.open(uri)
    entry = write_shard(uri, "part-00000", [tile(0)], GROUPS)
    with pytest.raises(UsageError, match="unfinished"):
        Dataset.open(uri)
    manifest = commit(uri, [entry])
    Dataset.open(uri)

    text = manifest.to_json()
    for damaged, message in [
        (text[:100], "not the manifest"),
        ("[1, 2]", "not the manifest"),
        ("[" * 100_000, "not the manifest"),
        (text.replace('"format_version": 2', '"format_version": 9'), "upgrade TerraFM"),
        (
            text.replace("bitshuffle", "other"),
            "cell group s1_10m names codec blosc2:other.*upgrade",
        ),
    ]:
        write_bytes(f"{uri}/manifest.json", damaged.encode())
        with pytest.raises(UsageError, match=message) as caught:
            Dataset.open(uri)
        assert "\n" not in str(caught.value)
    write_bytes(f"{uri}/manifest.json", text.encode())
    write_bytes(f"{uri}/index-1.parquet", b"PAR1 cut")
    with pytest.raises(UsageError, match="does not match the manifest"):
        Dataset.open(uri)
    remove(f"{uri}/index-1.parquet")
    with pytest.raises(UsageError, match="index"):
        Dataset.open(uri)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"height": 24', '"height": 2000000', "s1_10m has 2000000 x 24 pixels, .*24 px at 10 m"),
        ('"width": 4', '"width": 5', "s2_l2a_60m has 4 x 5 pixels, tiles of .* have 4 x 4"),
        ('"tile_size": 24', '"tile_size": 25', "s1_10m has 24 x 24 pixels, tiles of 25 px"),
        ('"tile_size": 24', '"tile_size": 2000000', "tile_size: .* less than or equal to 16384"),
        ('"modality": "s1"', '"modality": "s9"', "s9_10m is of no modality"),
        ('"gsd": 60', '"gsd": 0', "s2_l2a_0m has 4 x 4 pixels"),
        ('"gsd": 60', '"gsd": 241', "s2_l2a_241m has 4 x 4 pixels"),
    ],
)
def test_cell_groups_that_the_tiles_cannot_have_are_one_clear_line(uri, old, new, message):
    text = build(uri).to_json()
    assert old in text
    write_bytes(f"{uri}/manifest.json", text.replace(old, new, 1).encode())
    with pytest.raises(UsageError, match=message) as caught:
        Dataset.open(uri)
    assert "\n" not in str(caught.value)


def test_open_of_a_file_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        Dataset.open(tmp_path / "file")

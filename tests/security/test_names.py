"""Names are literal: no character of a name means other files, on a disk or in a store."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm import storage
from terrafm.errors import UsageError
from terrafm.storage import ranges, removal
from terrafm.storage.parquet import open_parquet, read_parquet

# Each beside neighbours that it would mean as a pattern, as a URL, or after one more decoding.
NAMES = {
    "lr[12]": ["lr1", "lr2"],
    "tiles[1]": ["tiles1"],
    "[!a]": ["b", "!"],
    "*": ["a", "part-00000.parquet"],
    "**": ["a"],
    "a?b": ["a", "axb"],
    "a*": ["a", "ab"],
    "{a,b}": ["a", "b"],
    "a b": ["a", "a+b", "a%20b"],
    "a+b": ["a b"],
    "a#b": ["a", "b"],
    "a%2Fb": ["a_b", "a/b"],
    "%61": ["a"],
    "a&b=c": ["a"],
    "a;b": ["a"],
    "a'b\"c": ["a"],
    "größe-雪": ["größe", "gro\u0308ße-雪"],
    "a\\b": ["a"],
    "$HOME": ["HOME"],
    ".a": ["a"],
}
names = pytest.mark.parametrize(("name", "neighbours"), NAMES.items(), ids=NAMES)
some_names = pytest.mark.parametrize("name", ["tiles[1]", "*", "a?b", "a b#c", "a%2Fb", "größe-雪"])


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_bucket")


def everything(root):
    """All files under a folder: URI -> content."""
    filesystem, path = storage.resolve(root)
    below = [file.removeprefix(f"{path}/") for file in filesystem.find(path)]
    return {file: storage.read_bytes(file) for file in (storage.join(root, name) for name in below)}


@names
def test_a_file_of_any_name_is_that_file_alone(name, neighbours, root, tmp_path):
    place = storage.join(root, "place")
    for neighbour in neighbours:
        storage.write_bytes(storage.join(place, neighbour), neighbour.encode())
    before = everything(place)
    file = storage.join(place, name)
    assert not storage.exists(file)
    assert storage.file_size(file) is None
    storage.remove(file)
    assert everything(place) == before

    storage.write_bytes(file, b"0123456789")
    assert everything(place) == before | {file: b"0123456789"}
    assert storage.exists(file)
    assert storage.file_size(file) == 10
    assert storage.read_range(file, 2, 4) == b"23"
    assert bytes(ranges.open_ranges(place).read(name, 2, 4)) == b"23"
    with storage.open_file(file) as opened:
        assert opened.read() == b"0123456789"
    storage.download(file, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"0123456789"
    (tmp_path / "there").write_bytes(b"uploaded")
    storage.upload(tmp_path / "there", file)
    assert everything(place) == before | {file: b"uploaded"}

    copied = storage.join(root, "copies", name)
    storage.copy(file, copied)
    assert everything(storage.join(root, "copies")) == {copied: b"uploaded"}
    storage.remove(file)
    assert everything(place) == before


@names
def test_a_folder_of_any_name_is_that_folder_alone(name, neighbours, root):
    place = storage.join(root, "place")
    for neighbour in neighbours:
        storage.write_bytes(storage.join(place, neighbour, "file"), neighbour.encode())
    before = everything(place)
    folder = storage.join(place, name)
    storage.ensure_writable(folder)
    for inside in ("file", "deep/er", name, f"deep/{name}"):
        storage.write_bytes(storage.join(folder, inside), b"1")
    assert sorted(storage.list_names(folder)) == sorted({"file", "deep", name})
    assert len(everything(folder)) == 4
    storage.remove_files(folder, [name, "not there"])
    assert len(everything(folder)) == 3
    storage.remove(folder)
    assert everything(place) == before
    assert storage.list_names(folder) == []


@some_names
def test_tables_of_any_name_are_read(name, root):
    uri = storage.join(root, name, f"{name}.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    assert read_parquet(uri)["a"].to_pylist() == [1, 2]
    with open_parquet(uri) as file:
        assert file.read()["a"].to_pylist() == [1, 2]


@some_names
def test_datasets_of_any_name_are_read(name, root, small_dataset):
    from terrafm.data.shards.dataset import Dataset
    from terrafm.data.shards.verify import verify

    target = storage.join(root, name)
    for file in Path(small_dataset).rglob("*.*"):
        storage.upload(file, storage.join(target, str(file.relative_to(small_dataset))))
    dataset, like = Dataset.open(target), Dataset.open(small_dataset)
    tile, same = (d.reader.read(d.locations([0]))[0] for d in (dataset, like))
    for group, pixels in same.items():
        np.testing.assert_array_equal(tile[group], pixels)
    assert verify(target)["faults"] == []


def test_removing_many_files_takes_few_requests(s3_bucket, monkeypatch):
    import s3fs

    assert removal._BULK == 1000
    monkeypatch.setattr(removal, "_BULK", 10)
    for number in range(13):
        storage.write_bytes(f"{s3_bucket}/many/file-{number}[*]", b"1")
    calls = []

    def counted(self, method, **kwargs):
        calls.append(method)
        return own(self, method, **kwargs)

    own = s3fs.S3FileSystem.call_s3
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", counted)
    storage.remove(f"{s3_bucket}/many")
    assert calls == ["delete_objects"] * 2
    assert not storage.exists(f"{s3_bucket}/many")


def test_an_object_that_names_a_version_is_no_version(s3_bucket):
    """`?versionId=` after a name means a version to the client: nobody else's object is met."""
    import boto3

    client = boto3.client("s3")
    bucket = s3_bucket.removeprefix("s3://")
    for key in ("run/a", "run/a?versionId=1", "run/", "run/b/"):
        client.put_object(Bucket=bucket, Key=key, Body=b"1")
    for call in (storage.read_bytes, storage.remove, storage.exists):
        with pytest.raises(UsageError, match=r"versionId"):
            call(f"{s3_bucket}/run/a?versionId=1")
    assert storage.read_bytes(f"{s3_bucket}/run/a") == b"1"
    client.put_object(Bucket=bucket, Key="running", Body=b"1")
    storage.remove(f"{s3_bucket}/run")
    left = [o["Key"] for o in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert left == ["running"]


def test_a_folder_and_a_file_of_one_name_go_together(s3_bucket):
    storage.write_bytes(f"{s3_bucket}/a", b"file")
    storage.write_bytes(f"{s3_bucket}/a/b", b"in the folder")
    storage.remove(f"{s3_bucket}/a")
    assert storage.list_names(s3_bucket) == []


def test_a_bucket_is_emptied_and_stays(s3_bucket):
    storage.write_bytes(f"{s3_bucket}/a", b"1")
    storage.remove(s3_bucket)
    assert storage.list_names(s3_bucket) == []
    storage.write_bytes(f"{s3_bucket}/a", b"1")


def test_what_a_store_does_not_delete_is_an_error(s3_bucket, monkeypatch):
    """S3 answers a bulk request with 200 and a list of what it refused."""
    import s3fs

    storage.write_bytes(f"{s3_bucket}/run/a", b"1")

    def refusing(self, method, **kwargs):
        return {"Errors": [{"Key": "run/a", "Code": "AccessDenied", "Message": "no"}]}

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", refusing)
    with pytest.raises(UsageError, match=r"cannot write .*/run: access refused"):
        storage.remove(f"{s3_bucket}/run")


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder"])
def test_a_link_is_removed_and_not_what_it_leads_to(kind, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("1")
    target = {"link": "mine/file", "dangling link": "nowhere", "link to a folder": "mine"}[kind]
    (tmp_path / "link").symlink_to(tmp_path / target)
    storage.remove(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "mine" / "file").read_text() == "1"

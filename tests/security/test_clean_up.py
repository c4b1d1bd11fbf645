"""Clean-up removes what we wrote and nothing else; through links nothing is written."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from terrafm.data.ingest.append import append
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.folder import check_folder, remove_halves, remove_shards, remove_staged
from terrafm.errors import UsageError
from terrafm.storage.temporary import own_folder
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.staging import remove_staging
from terrafm.train.checkpoints.store import list_checkpoints, load_checkpoint, save_checkpoint

HALF = "0123456789abcdef" * 2
FOREIGN = [
    "shards/notes.txt",
    "shards/part-00000.csv",
    "shards/part-00000.parquet",
    "shards/.hidden",
    "shards/.part-00000.parquet.old",
    "shards/mine/file",
    "entries/mine.arrow",
    "entries/notes.txt",
]


@pytest.fixture
def dataset(make_dataset, tmp_path):
    """An ingest that was stopped before its manifest."""
    folder = tmp_path / "dataset"
    make_dataset(folder)
    for name in ("manifest.json", "manifest-1.json", "index-1.parquet"):
        (folder / name).unlink()
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_output_with_files_of_others_is_refused_and_left(name, tmp_path):
    output = tmp_path / "output"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_bytes(b"a user's own")
    before = files(output)
    inside = "/".join(name.split("/")[:2])
    with pytest.raises(UsageError, match=rf"holds what no ingest wrote: {inside}; nothing was"):
        ingest("synthetic", "synthetic:seed=1", str(output))
    assert files(output) == before


@pytest.mark.parametrize("name", ["shards", "entries", "archive", "appending"])
def test_links_inside_a_dataset_are_not_followed(name, tmp_path):
    output = tmp_path / "above" / "output"
    output.mkdir(parents=True)
    (tmp_path / "above" / "mine.parquet").write_bytes(b"a user's own")
    (output / name).symlink_to("..")
    with pytest.raises(UsageError, match=rf"output/{name} is a link, and nothing is written"):
        ingest("synthetic", "synthetic:seed=1", str(output))
    assert files(tmp_path) == {"above/mine.parquet": b"a user's own"}


def test_appending_to_a_dataset_with_a_linked_folder_is_refused(make_dataset, tmp_path):
    folder = tmp_path / "above" / "dataset"
    make_dataset(folder)
    shutil.move(folder / "shards", tmp_path / "above" / "elsewhere")
    (folder / "shards").symlink_to("../elsewhere")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="dataset/shards is a link"):
        append("synthetic", "synthetic:seed=1", str(folder), tile_size=96)
    assert files(tmp_path) == before


def test_what_a_stopped_ingest_left_is_no_stranger(dataset):
    for folder, suffix in (("shards", "parquet"), ("entries", "arrow")):
        (dataset / folder / f".part-00009.{suffix}.{HALF}").write_bytes(b"half")
    # Killed between a shard and its entry.
    (dataset / "entries" / "part-00002.arrow").unlink()
    check_folder(str(dataset))


def test_only_our_shards_are_removed(dataset):
    """Files that come while an ingest runs are not its own either."""
    (dataset / "shards" / f".part-00009.parquet.{HALF}").write_bytes(b"half")
    for name in FOREIGN:
        if not (dataset / name).exists():
            (dataset / name).parent.mkdir(parents=True, exist_ok=True)
            (dataset / name).write_bytes(b"a user's own")
    before = files(dataset)
    remove_shards(str(dataset), {"part-00001"})
    remove_halves(str(dataset))
    gone = before.keys() - files(dataset).keys()
    assert gone == {
        "shards/part-00000.parquet",
        "shards/part-00002.parquet",
        f"shards/.part-00009.parquet.{HALF}",
    }


def test_staged_datasets_go_and_a_users_files_stay(make_dataset, tmp_path):
    dataset = tmp_path / "dataset"
    make_dataset(dataset)
    before = files(dataset)
    make_dataset(dataset / "appending" / "0123456789abcdef")
    remove_staged(str(dataset))
    assert files(dataset) == before
    assert not (dataset / "appending").exists()

    make_dataset(dataset / "appending" / "0123456789abcdef")
    mine = ["appending/mine.txt", "appending/other/manifest.json"]
    mine += [f"appending/0123456789abcdef/{name}" for name in ("notes", "shards/notes")]
    for name in mine:
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(b"a user's own")
    remove_staged(str(dataset))
    assert files(dataset) == before | dict.fromkeys(mine, b"a user's own")


def test_a_staged_dataset_that_is_a_link_is_left(make_dataset, tmp_path):
    other = tmp_path / "other"
    make_dataset(other)
    dataset = tmp_path / "dataset"
    (dataset / "appending").mkdir(parents=True)
    (dataset / "appending" / "0123456789abcdef").symlink_to(other)
    before = files(other)
    remove_staged(str(dataset))
    assert files(other) == before


def test_a_name_of_ours_with_other_content_is_no_shard(dataset, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = dataset / "shards" / "part-00009.parquet"
    pq.write_table(pa.table({"mine": [1]}), path)
    with pytest.raises(UsageError, match=r"holds what no ingest wrote: shards/part-00009\.parquet"):
        check_folder(str(dataset))
    remove_shards(str(dataset), set())
    assert path.exists()


def test_a_cell_cache_makes_room_among_its_own_folders_alone(tmp_path, monkeypatch):
    from terrafm.data.shards import cell_cache

    monkeypatch.setattr(cell_cache, "_IDLE_SECONDS", 0)
    cache = cell_cache.CellCache(tmp_path, limit=100)
    old, new = (cell_cache.CellKey(f"s3://b/{n}", "s", 0, 80, 0) for n in (1, 2))
    cache.put([(old, b"1" * 80)])
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "mine.jpg").write_bytes(b"a user's own" * 100)
    (tmp_path / "0123456789abcdef").symlink_to(tmp_path / "photographs")
    cache.put([(new, b"2" * 80)])
    assert cache.holds(new)
    assert not cache.holds(old)
    assert (tmp_path / "photographs" / "mine.jpg").exists()


def test_an_embedding_clears_away_its_own_parts_alone(tmp_path):
    from terrafm.embed.job import _PART, _remove_scaffold
    from terrafm.embed.schema import part_name

    ours = [f"entries/{part_name(7)}.json", f"blocks/.{part_name(7)}.safetensors.{HALF}"]
    mine = ["entries/notes.json", "entries/part-7/notes", "blocks/part-00007"]
    for name in (*ours, *mine):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    _remove_scaffold(str(tmp_path))
    assert sorted(files(tmp_path)) == sorted(mine)
    assert _PART.fullmatch("part-00007.parquet")


# Checkpoints


def with_notes(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "mine" / "file").write_text("mine")
    return folder


def only_notes(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == [
        "mine", "mine/file", "notes.txt",
    ]  # fmt: skip


def test_pruning_leaves_what_others_put_beside_a_checkpoint(checkpoint, tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        shutil.copytree(checkpoint, folder / f"step_{step:08d}")
    with_notes(folder / "step_00000002")
    prune_checkpoints(str(folder), Retention(last=1), 4)
    assert [step for step, _ in list_checkpoints(str(folder))] == [4]
    assert only_notes(folder / "step_00000002")


def test_a_checkpoint_that_is_written_anew_keeps_what_others_put_beside_it(checkpoint, tmp_path):
    target = tmp_path / "run/checkpoints/step_00000002"
    with_notes(Path(shutil.copytree(checkpoint, target)))
    (target / "state.json").write_text("{")
    state = load_checkpoint(checkpoint)
    save_checkpoint(str(target.parent), state)
    assert load_checkpoint(str(target)).step == 2
    assert (target / "notes.txt").read_text() == (target / "mine" / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_clearing_after_a_killed_writer_leaves_files_of_others(checkpoint, tmp_path):
    half = with_notes(Path(shutil.copytree(checkpoint, tmp_path / "run/.staging-abcd")))
    shutil.copytree(checkpoint, tmp_path / "run/.staging-efgh")
    remove_staging(str(tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".staging-abcd"]
    assert only_notes(half)


# Folders among the temporary files


def test_a_folder_that_somebody_else_has_laid_ready_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = own_folder("requests")
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o777)
    assert own_folder("requests").stat().st_mode & 0o777 == 0o700
    mine.rmdir()
    (tmp_path / "elsewhere").mkdir()
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not this user's own folder: name another"):
        own_folder("requests")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_another_user_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.chown(own_folder("standby"), 65534, 65534)
    with pytest.raises(UsageError, match="not this user's own folder"):
        own_folder("standby")

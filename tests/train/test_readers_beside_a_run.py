"""Who reads checkpoints while their run writes and prunes finds whole ones, never damage."""

import shutil
import threading
from pathlib import Path

import pytest

from terrafm.train.checkpoints.files import FILES, MARKER
from terrafm.train.checkpoints.intact import newest_intact, seen_damage
from terrafm.train.checkpoints.inventory import list_run, verify
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.staging import rename
from terrafm.train.run_folder import step_name

READS = 150


@pytest.fixture
def busy_run(checkpoint, tmp_path):
    """The checkpoints of a run that goes on as fast as a disk lets it, until the test ends."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    ended, failures = threading.Event(), []

    def write(step):
        staging = Path(shutil.copytree(checkpoint, tmp_path / f"run/.staging-{step}"))
        rename(staging, folder / step_name(step))

    def go_on():
        step = 2
        try:
            while not ended.is_set():
                step += 1
                write(step)
                write(step)  # Anew, as after a run that went back.
                prune_checkpoints(str(folder), Retention(last=2), step)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    write(2)
    going_on = threading.Thread(target=go_on)
    going_on.start()
    yield str(folder)
    ended.set()
    going_on.join()
    assert failures == []


@pytest.mark.parametrize("read", [list_run, verify])
def test_listing_and_verifying(busy_run, read):
    for _ in range(READS):
        found = read(busy_run)
        assert found["checkpoints"]
        if read is verify:
            assert found["faults"] == []
        else:
            assert [row["damage"] for row in found["checkpoints"] if row["damage"]] == []


def test_the_newest_whole_one(busy_run):
    for _ in range(READS):
        uri, complaints = newest_intact(busy_run)
        assert uri is not None
        assert complaints == []


@pytest.mark.parametrize("name", sorted(FILES - {MARKER}))
def test_damage_that_stays_is_told(checkpoint, tmp_path, name):
    uri = Path(shutil.copytree(checkpoint, tmp_path / "step_00000002"))
    (uri / name).write_bytes(b"other")
    assert seen_damage(str(uri)) == [(name, "is not what was written")]
    (uri / MARKER).unlink()
    assert seen_damage(str(uri)) is None

import json

import fsspec
import pytest
import torch

from terrafm.errors import UsageError
from terrafm.storage import join, list_names
from terrafm.train.checkpoint import (
    DamagedCheckpointError,
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    load_teacher,
    newest_intact,
    prune_checkpoints,
    read_record,
    save_checkpoint,
)
from terrafm.train.engine import EngineState


def state(step, value=1.0):
    weight = torch.full((3, 2), value)
    return TrainingState(
        step=step,
        engine=EngineState(
            {"encoder.weight": weight},
            {"exp_avg.encoder.weight": weight / 3, "step.decay": torch.tensor(float(step))},
        ),
        teacher={"encoder.weight": weight * 2},
        centers={"center": torch.arange(4.0)},
        record={"cursor": {"consumed": step * 8}},
    )


@pytest.fixture(params=["disk", "object store"])
def folder(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path / "run" / "checkpoints")
    else:
        yield "memory://bucket/run/checkpoints"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_checkpoint_comes_back_bit_for_bit(folder):
    saved = state(40, value=1 / 3)
    uri = save_checkpoint(folder, saved)
    assert uri.endswith("step_00000040")
    loaded = load_checkpoint(uri)
    assert loaded.step == 40
    assert loaded.record == saved.record
    for mine, theirs in (
        (saved.engine.student, loaded.engine.student),
        (saved.engine.optimizer, loaded.engine.optimizer),
        (saved.teacher, loaded.teacher),
        (saved.teacher, load_teacher(uri)),
        (saved.centers, loaded.centers),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_checkpoints_are_listed_in_order_and_pruned_from_the_oldest(folder):
    for step in (5, 100, 20, 10):
        save_checkpoint(folder, state(step))
    assert [step for step, _ in list_checkpoints(folder)] == [5, 10, 20, 100]
    prune_checkpoints(folder, keep=2)
    assert list_names(folder) == ["step_00000020", "step_00000100"]


def test_without_its_marker_a_folder_is_no_checkpoint(folder):
    uri = save_checkpoint(folder, state(5))
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.rm(f"{path}/complete.json")
    assert list_checkpoints(folder) == []
    assert newest_intact(folder) == (None, [])
    with pytest.raises(UsageError, match="not a complete checkpoint"):
        load_checkpoint(uri)


def _damage(uri, name, change):
    filesystem, path = fsspec.core.url_to_fs(join(uri, name))
    content = filesystem.cat_file(path)
    filesystem.pipe_file(path, change(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"",
    ],
    ids=["cut short", "bit flipped", "emptied"],
)
@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_passed_over(folder, name, change):
    older = save_checkpoint(folder, state(5))
    newer = save_checkpoint(folder, state(10))
    _damage(newer, name, change)
    found, complaints = newest_intact(folder)
    assert found == older
    assert len(complaints) == 1
    assert newer in complaints[0]
    assert name in complaints[0]
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(newer)


def test_a_missing_file_is_damage(folder):
    uri = save_checkpoint(folder, state(5))
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.rm(f"{path}/teacher.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"teacher\.safetensors is missing"):
        newest_intact(folder)


def test_a_later_format_is_refused_by_name(folder):
    uri = save_checkpoint(folder, state(5))
    _damage(
        uri, "complete.json", lambda c: json.dumps({**json.loads(c), "format_version": 99}).encode()
    )
    with pytest.raises(UsageError, match=r"format 99.*upgrade"):
        read_record(uri)


def test_writing_over_a_checkpoint_leaves_the_new_one_and_nothing_else(tmp_path):
    folder = str(tmp_path / "checkpoints")
    save_checkpoint(folder, state(5, value=1.0))
    uri = save_checkpoint(folder, state(5, value=2.0))
    assert load_checkpoint(uri).engine.student["encoder.weight"][0, 0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]

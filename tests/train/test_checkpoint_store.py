"""The format: complete or invisible, checked, readable by later versions, free of pickles."""

import json
import pickle
import re
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from fault_proxy import Every, Faults

import terrafm.train.checkpoints
from terrafm.config import Config, build_config
from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import faults, join, list_names, read_bytes, remove
from terrafm.train.checkpoints.files import digest_of, write_tensors
from terrafm.train.checkpoints.intact import damage_of, newest_intact
from terrafm.train.checkpoints.inventory import list_run
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import (
    DamagedCheckpointError,
    TrainingState,
    fork_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_network,
    read_marker,
    read_record,
    save_checkpoint,
)
from terrafm.train.step.engine import EngineState

VERSION_1 = Path(__file__).parent / "version_1" / "checkpoints" / "step_00000040"


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
        metrics={"step": step, "loss": 1 / step},
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
    assert (loaded.record, loaded.metrics) == (saved.record, saved.metrics)
    assert read_record(uri)["saved_at"].endswith("+00:00")
    for mine, theirs in (
        (saved.engine.student, loaded.engine.student),
        (saved.engine.optimizer, loaded.engine.optimizer),
        (saved.teacher, loaded.teacher),
        (saved.teacher, load_network(uri, "teacher")),
        (saved.engine.student, load_network(uri, "student")),
        (saved.centers, loaded.centers),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_checkpoints_are_listed_in_order_and_other_folders_are_not(folder):
    for step in (5, 100, 20, 10):
        save_checkpoint(folder, state(step))
    _put(join(folder, "step_average", "complete.json"), b"{}")
    assert [step for step, _ in list_checkpoints(folder)] == [5, 10, 20, 100]


@pytest.mark.parametrize("copy", ["step_6", "step_0000000000006", "step_+6", "step_\u0666"])
def test_a_step_has_one_name(folder, copy):
    uri = save_checkpoint(folder, state(6))
    for name in list_names(uri):
        _put(join(folder, copy, name), read_bytes(join(uri, name)))
    assert list_checkpoints(folder) == [(6, uri)]
    assert newest_intact(folder) == (uri, [])
    prune_checkpoints(folder, Retention(1), 6)
    assert list_checkpoints(folder) == [(6, uri)]


def test_a_later_checkpoint_of_another_name_is_told_of(folder):
    older = save_checkpoint(folder, state(3))
    newer = save_checkpoint(folder, state(6))
    for name in list_names(newer):
        _put(join(folder, "step_6", name), read_bytes(join(newer, name)))
    remove(newer)
    found, (complaint,) = newest_intact(folder)
    assert found == older
    assert complaint.endswith("step_6 is not looked at: a run names it step_00000006")
    # Alone it is no reason to begin anew, over what it stands for.
    remove(older)
    with pytest.raises(DamagedCheckpointError, match="a run names it step_00000006"):
        newest_intact(folder)


def test_without_its_marker_a_folder_is_no_checkpoint(folder):
    uri = save_checkpoint(folder, state(5))
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.rm(f"{path}/complete.json")
    assert list_checkpoints(folder) == []
    assert newest_intact(folder) == (None, [])
    with pytest.raises(UsageError, match="not a complete checkpoint"):
        load_checkpoint(uri)


def _put(uri, content):
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, content)


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


def test_a_store_never_shows_files_of_two_checkpoints_under_one_marker(proxied, monkeypatch):
    bucket, proxy = proxied
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.5)
    folder = join(bucket, "checkpoints")
    older = save_checkpoint(folder, state(4))
    uri = save_checkpoint(folder, state(5, value=1.0))
    # Down from the third request on: the marker has gone, not all files have come.
    proxy.plan = Faults(slow_down=Every(1, 1, skip=proxy.counters["requests"] + 5))
    with pytest.raises(TerraFMError, match="cannot write"):
        save_checkpoint(folder, state(5, value=2.0))
    proxy.plan = Faults()
    assert list_names(uri) != []
    assert newest_intact(folder) == (older, [])


@pytest.mark.parametrize(
    "marker",
    [
        *(b"", b"[]", b"{}", b'{"format_version": 2}', b'{"format_version": "x", "files": {}}'),
        *(b'{"format_version": Infinity, "files": {}}', b"[" * 100_000),
    ],
    ids=lambda marker: marker[:40],
)
def test_an_unreadable_marker_is_damage(folder, marker):
    uri = save_checkpoint(folder, state(5))
    _put(join(uri, "complete.json"), marker)
    assert list(damage_of(uri)) == [("complete.json", "is not readable")]
    with pytest.raises(DamagedCheckpointError, match=r"complete\.json is not readable"):
        load_checkpoint(uri)


@pytest.mark.parametrize("content", [b"[]", b"1", b"{", b"[" * 100_000], ids=lambda c: c[:3])
def test_a_state_that_is_none_is_damage_whatever_its_checksum(folder, content):
    uri = save_checkpoint(folder, state(5))
    marker = read_marker(uri)
    marker["files"]["state.json"] = digest_of(content)
    _put(join(uri, "state.json"), content)
    _put(join(uri, "complete.json"), json.dumps(marker).encode())
    with pytest.raises(DamagedCheckpointError, match=r"state\.json is not readable"):
        load_checkpoint(uri)


WRITTEN = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "files",
    [
        *({name: WRITTEN} for name in ("", ".", "..", "../../../dev/zero", "/dev/zero")),
        *({name: WRITTEN} for name in ("folder/file", "..\\file", "state\0", "\ud800")),
        *({"state.json": written} for written in (None, [], {}, {"bytes": 1}, {"sha256": "0"})),
        *({"state.json": WRITTEN | {"bytes": size}} for size in ("1", 1.0, True, None)),
        {"state.json": WRITTEN | {"sha256": 0}},
        [["state.json", WRITTEN]],
    ],
    ids=repr,
)
def test_a_marker_that_names_what_no_checkpoint_holds_is_damage(folder, files):
    uri = save_checkpoint(folder, state(5))
    _put(join(uri, "complete.json"), json.dumps({"format_version": 2, "files": files}).encode())
    assert list(damage_of(uri)) == [("complete.json", "is not readable")]
    with pytest.raises(DamagedCheckpointError, match=r"complete\.json is not readable"):
        load_checkpoint(uri)
    (row,) = list_run(folder)["checkpoints"]
    assert row["damage"].startswith("complete.json is not readable: f")


def test_a_later_version_may_name_its_files_otherwise(folder):
    uri = save_checkpoint(folder, state(5))
    files = {"optimizer/0.safetensors": WRITTEN}
    _put(join(uri, "complete.json"), json.dumps({"format_version": 3, "files": files}).encode())
    with pytest.raises(UsageError, match="upgrade terrafm"):
        load_checkpoint(uri)


def test_all_damage_is_found(folder):
    uri = save_checkpoint(folder, state(5))
    assert list(damage_of(uri)) == []
    _damage(uri, "teacher.safetensors", lambda c: c[:-1] + b"x")
    _damage(uri, "state.json", lambda c: c + b" ")
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.rm(f"{path}/centers.safetensors")
    assert sorted(damage_of(uri)) == [
        ("centers.safetensors", "is missing"),
        ("state.json", "is not what was written"),
        ("teacher.safetensors", "is not what was written"),
    ]


def test_the_tensor_file_is_what_the_library_would_have_written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a": (), "empty": (0, 4), "long.name": (1000,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["counter"] = torch.tensor([1, 2, 3])
    digest = write_tensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    assert digest == digest_of(content)
    found = safetensors.torch.load(content)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert len(content) == len(safetensors.torch.save(tensors))


def test_a_checkpoint_of_format_1_is_read():
    uri = str(VERSION_1)
    assert json.loads((VERSION_1 / "complete.json").read_text())["format_version"] == 1
    assert list(damage_of(uri)) == []
    assert list_checkpoints(str(VERSION_1.parent)) == [(40, uri)]
    assert newest_intact(str(VERSION_1.parent)) == (uri, [])
    found = load_checkpoint(uri)
    weight = torch.full((3, 2), 1 / 3)
    assert (found.step, found.metrics) == (40, {})
    assert torch.equal(found.engine.student["encoder.weight"], weight)
    assert torch.equal(found.engine.optimizer["exp_avg.encoder.weight"], weight / 3)
    assert found.engine.optimizer["step.decay"] == 40
    assert torch.equal(found.teacher["head.weight"], weight * 3)
    assert torch.equal(found.centers["center"], torch.arange(4.0))
    assert set(found.record) == {"cursor", "dataset", "contract", "config", "versions"}
    assert found.record["cursor"]["consumed"] == 160
    assert build_config(found.record["config"], of_run=True).train.keep_every is None
    assert read_record(uri)["saved_at"] is None


def test_nothing_is_unpickled(folder, monkeypatch):
    uri = save_checkpoint(folder, state(5))

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, names in ((torch, ["load"]), (pickle, ["load", "loads", "Unpickler"])):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert load_checkpoint(uri).step == 5
    assert load_checkpoint(str(VERSION_1)).step == 40
    assert list(damage_of(uri)) == []
    package = Path(terrafm.train.checkpoints.__file__).parent
    for file in package.glob("*.py"):
        assert not re.search(r"import pickle|torch\.(load|save)\b", file.read_text()), file.name


def test_a_fork_differs_in_its_configuration_alone(folder):
    source = save_checkpoint(folder, state(40, value=1 / 3))
    config = Config(loss={"alpha": 0.25})
    forked = fork_checkpoint(source, join(folder, "fork"), config)
    ours, theirs = load_checkpoint(forked), load_checkpoint(source)
    assert ours.record.pop("config") == config.model_dump(mode="json")
    theirs.record.pop("config", None)
    assert (ours.step, ours.metrics) == (theirs.step, theirs.metrics)
    assert ours.record["cursor"] == theirs.record["cursor"]
    for mine, other in (
        (ours.engine.student, theirs.engine.student),
        (ours.engine.optimizer, theirs.engine.optimizer),
        (ours.teacher, theirs.teacher),
        (ours.centers, theirs.centers),
    ):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)

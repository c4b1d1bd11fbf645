"""Weights of a run that still trains: those of the last and of the best checkpoint, whole."""

import logging

import pytest
import torch

import terrafm
from terrafm.export.writing import export_checkpoint
from terrafm.models.weights import load_weights, read_contract
from terrafm.storage import exists, join, list_names, read_bytes, write_bytes
from terrafm.train.checkpoints.best import Best, write_best
from terrafm.train.checkpoints.exported import (
    bring_up_to_date,
    export_best,
    export_last,
    exported_step,
    exported_weights,
)
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.staging import remove_staging
from terrafm.train.checkpoints.store import load_checkpoint, save_checkpoint
from terrafm.train.checkpoints.writer import CheckpointWriter
from terrafm.train.run_folder import RunFolder


@pytest.fixture(params=["disk", "store"])
def run_uri(request, tmp_path):
    """URI of a run, on a disk and in S3."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return join(request.getfixturevalue("s3_bucket"), "run")


@pytest.fixture
def states(checkpoint):
    """Makes the state after some steps; each has weights of its own."""

    def at(step):
        state = load_checkpoint(checkpoint)
        state.step = step
        for tensor in state.teacher.values():
            tensor.add_(step)
        return state

    return at


def save(run, *states):
    for state in states:
        save_checkpoint(RunFolder(run).checkpoints, state)


def name_best(run, step):
    best = None if step is None else Best(step, "knn", "max", 0.5)
    write_best(RunFolder(run).checkpoints, best)


def test_the_writer_leaves_the_weights_of_its_newest_checkpoint(run_uri, states):
    checkpoints = RunFolder(run_uri).checkpoints
    writer = CheckpointWriter(
        checkpoints, Retention(last=1), write_records=lambda: None,
        export=lambda state: export_last(run_uri, state),
    )  # fmt: skip
    for step in (2, 4):
        writer.save(states(step))
    writer.close()
    (uri,) = exported_weights(run_uri)
    assert uri == join(run_uri, "exported", "last.safetensors")
    assert list_names(join(run_uri, "exported")) == ["last.safetensors"]
    assert exported_step(run_uri, "last") == 4
    # Byte for byte what the verb makes of the checkpoint.
    (made, _), _ = export_checkpoint(
        RunFolder(run_uri).checkpoint(4), join(run_uri, "by-hand"), "safetensors"
    )
    assert read_bytes(made) == read_bytes(uri)


def test_the_weights_can_be_used_at_once(run_uri, states):
    state = states(2)
    save(run_uri, state)
    bring_up_to_date(run_uri, 2)
    uri = RunFolder(run_uri).exported("last")
    model = terrafm.load_model("terrafm_tiny", weights=uri)
    assert (model.contract.step, model.contract.network) == (2, "teacher")
    assert torch.equal(model.cls_token, state.teacher["encoder.cls_token"])
    again, snippet = export_checkpoint(uri, join(run_uri, "hub"), "hf")
    assert b"after 2 steps" in read_bytes(join(run_uri, "hub", "README.md"))
    assert "from_pretrained" in snippet
    assert torch.equal(load_weights(again[0])[0]["cls_token"], model.cls_token)


def test_the_best_weights_follow_what_is_best(run_uri, states):
    save(run_uri, states(2), states(4))
    assert export_best(run_uri) is None
    assert exported_weights(run_uri) == []
    for step in (4, 2):
        name_best(run_uri, step)
        assert export_best(run_uri) == step
        assert exported_step(run_uri, "best") == step
    name_best(run_uri, None)
    assert export_best(run_uri) is None
    assert exported_weights(run_uri) == []


def test_what_a_killed_command_did_not_write_is_mended(run_uri, states):
    save(run_uri, states(2))
    bring_up_to_date(run_uri, 2)
    save(run_uri, states(4))
    name_best(run_uri, 2)
    write_bytes(RunFolder(run_uri).exported("best"), b"half")
    bring_up_to_date(run_uri, 4)
    assert [exported_step(run_uri, name) for name in ("last", "best")] == [4, 2]
    # A run that goes on from before its last checkpoint, which was damaged.
    bring_up_to_date(run_uri, 2)
    assert exported_step(run_uri, "last") == 2


def test_weights_that_are_those_of_now_are_not_written_again(tmp_path, states):
    run = str(tmp_path)
    save(run, states(2))
    bring_up_to_date(run, 2)
    before = (tmp_path / "exported" / "last.safetensors").stat().st_ino
    bring_up_to_date(run, 2)
    assert (tmp_path / "exported" / "last.safetensors").stat().st_ino == before


def test_a_run_without_checkpoints_has_no_weights(tmp_path):
    bring_up_to_date(str(tmp_path / "run"), 0)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_takes_no_weights_costs_no_checkpoint(tmp_path, states, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "exported").write_text("somebody's")
    checkpoints = RunFolder(str(run)).checkpoints
    with caplog.at_level(logging.WARNING, logger="terrafm.train"):
        writer = CheckpointWriter(
            checkpoints, Retention(last=2), write_records=lambda: None, background=False,
            export=lambda state: export_last(str(run), state),
        )  # fmt: skip
        writer.save(states(2))
        writer.close()
        bring_up_to_date(str(run), 2)
    assert exists(RunFolder(str(run)).checkpoint(2))
    assert (run / "exported").read_text() == "somebody's"
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("no exported weights after step 2: ")
    assert "exported" in told[1]


def test_what_was_being_written_when_a_writer_died_goes(tmp_path, states, monkeypatch):
    save(str(tmp_path), states(2))
    monkeypatch.setattr("terrafm.train.checkpoints.exported.replace", _die)
    monkeypatch.setattr("terrafm.train.checkpoints.staging._clear", lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        export_last(str(tmp_path), states(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob(".staging-*/*")] == ["teacher.safetensors"]
    assert exported_weights(str(tmp_path)) == []
    remove_staging(str(tmp_path))
    assert not list(tmp_path.glob(".staging-*"))


def _die(*_):
    raise KeyboardInterrupt


def test_only_weights_with_their_contract_are_exported_again(tmp_path, states):
    run = str(tmp_path)
    save(run, states(2))
    bring_up_to_date(run, 2)
    uri = RunFolder(run).exported("last")
    with pytest.raises(terrafm.errors.UsageError, match="holds the teacher, not the student"):
        export_checkpoint(uri, f"{run}/out", "safetensors", network="student")
    state, _ = load_weights(uri)
    torch.save(state, tmp_path / "plain.pth")
    with pytest.raises(terrafm.errors.UsageError, match="no data contract"):
        export_checkpoint(f"{run}/plain.pth", f"{run}/out", "safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 99, b"\x02" + bytes(7) + b"[]"])
def test_a_header_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - the message is of whoever reads the header
        read_contract(str(tmp_path / "weights.safetensors"))

"""`terrafm checkpoint`: what it prints, its exit codes, and that an average is usable."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import terrafm
from terrafm.config import load_config
from terrafm.train.checkpoints.store import load_network, read_record, save_checkpoint
from terrafm.train.worker.setup import TrainingSetup

VERSION_1 = Path(__file__).parent / "train" / "version_1"
SETTINGS = [
    "train.steps=80", "train.global_batch=4", "head.num_prototypes=32",
    "train.keep_checkpoints=3", "train.keep_every=20",
]  # fmt: skip


def setup_of(data, *more):
    return TrainingSetup.open(load_config("demo", [*SETTINGS, *more]), data)


def write(setup, output, step, loss, value=None):
    """A checkpoint of a real model; with `value` all its parameters are that."""
    distillation = setup.plain_distillation()
    if value is not None:
        with torch.no_grad():
            for name, network in (
                ("student", distillation.engine.student),
                ("teacher", distillation.teacher),
            ):
                for parameter in network.parameters():
                    parameter.fill_(value if name == "student" else 2 * value)
    state = setup.state(step, distillation.engine.state(), distillation)
    state.metrics = {"step": step, "loss": loss}
    return Path(save_checkpoint(str(Path(output) / "checkpoints"), state))


@pytest.fixture(scope="module")
def history(small_dataset, tmp_path_factory):
    """A run's folder with four checkpoints."""
    output = tmp_path_factory.mktemp("history") / "run"
    setup = setup_of(small_dataset)
    for step, loss in ((20, 4.0), (30, 2.5), (45, 3.25), (50, 3.0)):
        write(setup, output, step, loss)
    return output


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_list_says_what_is_there_and_why(run, history):
    code, out, _ = run("checkpoint", "list", history, "--json")
    assert code == 0
    found = json.loads(out)
    rows = {row["step"]: row for row in found["checkpoints"]}
    assert list(rows) == [20, 30, 45, 50]
    assert {step: row["kept"] for step, row in rows.items()} == {
        20: ["every 20"],
        30: ["last"],
        45: ["last"],
        50: ["last"],
    }
    assert [row["metrics"]["loss"] for row in rows.values()] == [4.0, 2.5, 3.25, 3.0]
    assert all(row["damage"] == "" for row in rows.values())
    size = sum(p.stat().st_size for p in (history / "checkpoints" / "step_00000050").iterdir())
    # All but the marker.
    assert 0.99 < rows[50]["bytes"] / size < 1
    assert found["keep"] == "the newest 3, every 20 steps"
    # The folder of the checkpoints does as well.
    code, out, _ = run("checkpoint", "list", history / "checkpoints", "--json")
    assert (code, json.loads(out)["checkpoints"]) == (0, found["checkpoints"])


def test_list_as_a_table(run, history):
    code, out, _ = run("checkpoint", "list", history)
    assert code == 0
    assert "every 20" in out
    assert "3.250" in out
    assert "kept: the newest 3, every 20 steps" in out
    assert out.count("whole") == 4


def test_list_shows_damage_that_it_can_see(run, history, tmp_path):
    copy = shutil.copytree(history, tmp_path / "run") / "checkpoints"
    teacher = copy / "step_00000050" / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[:1000])
    (copy / "step_00000045" / "centers.safetensors").unlink()
    flip(copy / "step_00000030" / "state.json")
    (copy / "step_00000020" / "complete.json").write_text("{")
    code, out, _ = run("checkpoint", "list", copy, "--json")
    assert code == 0
    damage = [row["damage"] for row in json.loads(out)["checkpoints"]]
    assert damage[0].startswith("complete.json is not readable: ")
    assert damage[1:3] == [
        "state.json is not what was written",
        "centers.safetensors is missing",
    ]
    assert damage[3].startswith("teacher.safetensors has 1,000 of 10,")
    code, out, _ = run("checkpoint", "list", copy)
    assert code == 0
    assert "missing" in out


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_where_there_is_no_checkpoint(refused, tmp_path, verb):
    (tmp_path / "run" / "checkpoints" / "step_00000005").mkdir(parents=True)
    for where in ("nothing", "run", "run/checkpoints", "run/checkpoints/step_00000005"):
        line = refused("checkpoint", verb, tmp_path / where)
        said = "does not exist" if where == "nothing" else "holds no complete checkpoint"
        assert said in line
        assert where in line


def test_a_newer_format_is_one_line(refused, history, tmp_path):
    copy = shutil.copytree(history, tmp_path / "run") / "checkpoints" / "step_00000030"
    marker = json.loads((copy / "complete.json").read_text())
    (copy / "complete.json").write_text(json.dumps(marker | {"format_version": 99}))
    for verb in ("list", "verify"):
        assert "has format 99" in refused("checkpoint", verb, tmp_path / "run")


def test_verify_names_the_damaged_file(run, history, tmp_path):
    code, out, _ = run("checkpoint", "verify", history)
    assert (code, "run is whole (4 checkpoints)" in " ".join(out.split())) == (0, True)
    copy = shutil.copytree(history, tmp_path / "run") / "checkpoints"
    flip(copy / "step_00000030" / "optimizer.safetensors")
    code, out, errors = run("checkpoint", "verify", tmp_path / "run")
    assert code == 1
    assert errors.count("\n") == 1
    assert "step_00000030: optimizer.safetensors is not what was written" in errors
    assert "optimizer.safetensors" in out
    code, out, _ = run("checkpoint", "verify", copy / "step_00000030", "--json")
    assert code == 1
    assert json.loads(out)["faults"] == [
        {
            "checkpoint": str(copy / "step_00000030"),
            "file": "optimizer.safetensors",
            "why": "is not what was written",
        }
    ]
    code, out, _ = run("checkpoint", "verify", copy / "step_00000050")
    assert (code, "whole" in out) == (0, True)


def test_checkpoints_of_format_1_are_listed_and_verified(run):
    code, out, _ = run("checkpoint", "list", VERSION_1, "--json")
    assert code == 0
    (row,) = json.loads(out)["checkpoints"]
    assert (row["step"], row["saved_at"], row["metrics"], row["kept"]) == (40, None, {}, ["last"])
    assert run("checkpoint", "list", VERSION_1)[0] == 0
    assert run("checkpoint", "verify", VERSION_1)[0] == 0


def test_an_average_becomes_weights(run, small_dataset, tmp_path):
    setup = setup_of(small_dataset)
    folders = [
        write(setup, tmp_path / f"run{i}", 10 * (i + 1), 1.0, value)
        for i, value in enumerate((0.1, 0.2, 0.9))
    ]
    output = tmp_path / "average"
    code, out, _ = run("checkpoint", "average", *folders, "--output", output)
    assert code == 0
    assert f"terrafm export --checkpoint {output}" in out
    assert "the mean of 3 checkpoints (steps 10, 20, 30)" in out
    # As after a kill: what was left in the making goes, and what is whole is not made again.
    (tmp_path / ".staging-killed").mkdir()
    (tmp_path / ".staging-killed" / "state.json").touch()
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    again = run("checkpoint", "average", *folders, "--output", output)
    assert again[:2] == (0, out)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    code, _, errors = run("checkpoint", "average", *folders[:2], "--output", output)
    assert (code, "is not empty" in errors) == (2, True)
    assert run("checkpoint", "average", *folders, "--output", tmp_path / "other")[0] == 0
    assert not (tmp_path / ".staging-killed").exists()
    expected = torch.tensor([0.1, 0.2, 0.9]).double().mean().float()
    for name, factor in (("student", 1), ("teacher", 2)):
        tensors = load_network(str(output), name)
        assert tensors.keys() == load_network(str(folders[0]), name).keys()
        for tensor in tensors.values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, factor * expected))
    record = read_record(str(output))
    assert [part["step"] for part in record["averaged"]] == [10, 20, 30]
    assert record["step"] == 30
    assert run("checkpoint", "verify", output)[0] == 0
    code, out, _ = run(
        *("export", "--checkpoint", output, "--output", tmp_path / "w"),
        *("--format", "safetensors"),
    )
    assert code == 0
    assert terrafm.load_model("terrafm_tiny", weights=str(tmp_path / "w")).contract is not None


def test_an_average_of_equals_is_bit_for_bit_the_same(run, history, tmp_path):
    one = str(history / "checkpoints" / "step_00000050")
    assert run("checkpoint", "average", one, one, one, "--output", tmp_path / "a")[0] == 0
    expected, found = load_network(one, "teacher"), load_network(str(tmp_path / "a"), "teacher")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_cannot_be_averaged_is_one_line(refused, history, small_dataset, tmp_path):
    one, two = (history / "checkpoints" / f"step_{step:08d}" for step in (45, 50))
    other = write(setup_of(small_dataset, "head.num_prototypes=16"), tmp_path / "other", 5, 1.0)
    output = tmp_path / "average"
    average = ("checkpoint", "average")
    line = refused(*average, one, other, "--output", output)
    assert "another model" in line
    assert "head.num_prototypes is 16, not 32" in line
    assert "two checkpoints or more" in refused(*average, one, "--output", output)
    assert "not a complete checkpoint" in refused(*average, one, history, "--output", output)
    line = refused(*average, one, two, "--output", history / "checkpoints" / "step_00000099")
    assert "choose another name" in line
    assert "is not empty" in refused(*average, one, two, "--output", history)
    copy = shutil.copytree(two, tmp_path / "copy")
    flip(copy / "teacher.safetensors")
    line = refused(*average, one, copy, "--output", output, code=1)
    assert "copy: teacher.safetensors is not what was written" in line
    assert not output.exists()
    assert not list(tmp_path.glob(".staging-*"))


def test_statistics_that_differ_are_not_averaged(refused, history, tmp_path):
    import hashlib

    one = history / "checkpoints" / "step_00000050"
    copy = shutil.copytree(one, tmp_path / "copy")
    state = json.loads((copy / "state.json").read_text())
    state["contract"]["modalities"]["s1"]["mean"][0] += 1
    content = json.dumps(state).encode()
    (copy / "state.json").write_bytes(content)
    marker = json.loads((copy / "complete.json").read_text())
    marker["files"]["state.json"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (copy / "complete.json").write_text(json.dumps(marker))
    line = refused("checkpoint", "average", one, copy, "--output", tmp_path / "average")
    assert "normalise their input differently" in line


def test_no_run_goes_on_from_an_average(run, history, tmp_path):
    from terrafm.errors import UsageError
    from terrafm.train.checkpoints.store import load_checkpoint

    folders = sorted((history / "checkpoints").iterdir())
    assert run("checkpoint", "average", *folders, "--output", tmp_path / "average")[0] == 0
    with pytest.raises(UsageError, match="is an average of checkpoints"):
        load_checkpoint(str(tmp_path / "average"))


@pytest.mark.parametrize("arguments", [[], ["list"], ["average", "a", "b"], ["nonsense"]])
def test_wrong_usage_is_exit_2(run, arguments):
    code, _, errors = run("checkpoint", *arguments)
    assert code == 2
    assert "Traceback" not in errors

import json
from importlib import util
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "data" / "golden_curve.json"


def load_script():
    spec = util.spec_from_file_location("golden_curve", Path(__file__).with_name("golden_curve.py"))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def first(small_dataset):
    return load_script().run(small_dataset)


def test_two_runs_on_one_machine_are_bit_for_bit_equal(first, small_dataset):
    curve, state = load_script().run(small_dataset)
    assert curve == first[0]
    for name, tensor in state.engine.student.items():
        assert torch.equal(tensor, first[1].engine.student[name]), name
    for name, tensor in state.teacher.items():
        assert torch.equal(tensor, first[1].teacher[name]), name
    for name, tensor in state.centers.items():
        assert torch.equal(tensor, first[1].centers[name]), name


def test_the_committed_curve_is_met(first):
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == len(first[0]) == 30
    for step, (expected, found) in enumerate(zip(golden, first[0], strict=True)):
        for key in ("loss", "teacher_entropy", "student_entropy"):
            assert found[key] == pytest.approx(expected[key], rel=1e-4), (step, key)


def test_micro_batches_do_not_show(first, small_dataset):
    whole, _ = load_script().run(small_dataset, ["train.micro_batch=8", "train.steps=30"])
    for step, (expected, found) in enumerate(zip(first[0], whole, strict=True)):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4), step


def test_everything_moves_and_the_teacher_lags(first, small_dataset):
    _, state = first
    for name, tensor in state.engine.student.items():
        assert torch.isfinite(tensor).all(), name
    student, teacher = state.engine.student, state.teacher
    moved = [n for n in student if not torch.equal(student[n], teacher[n])]
    assert set(moved) == set(student)
    assert state.centers["center"].abs().max() > 0
    assert state.centers["center_high_frequency"].abs().max() > 0
    assert not torch.equal(state.centers["center"], state.centers["center_high_frequency"])

"""Pointers of a sweep, which lie among Ray Tune's pickles and may be anybody's."""

import json

import pytest

from terrafm.errors import TerraFMError
from tuning.trial import PretrainTrial, TrialTask, read_pointer

OUTPUT = "s3://bucket/sweep"
RUN = f"{OUTPUT}/trials/0003/run-0"
SOUND = {"run": RUN, "checkpoint": f"{RUN}/checkpoints/step_00000004", "step": 4}
BROKEN = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[]",
    "no step": {"run": RUN, "checkpoint": SOUND["checkpoint"]},
    "a step of another kind": SOUND | {"step": "4"},
    "a negative step": SOUND | {"step": -1},
    "a run of another kind": SOUND | {"run": 3},
    "no checkpoint": SOUND | {"checkpoint": None},
    "another step": SOUND | {"step": 6},
    "another sweep": SOUND | {"run": "s3://bucket/other/trials/0003/run-0"},
    "above": SOUND | {"run": f"{OUTPUT}/trials/../../x"},
    "a checkpoint elsewhere": SOUND | {"checkpoint": "/etc/checkpoints/step_00000004"},
}


@pytest.fixture
def trial(tmp_path):
    """A trial of the sweep, without Tune around it."""
    found = PretrainTrial.__new__(PretrainTrial)
    found._task = TrialTask({}, "data", "labelled", ("s2_l2a",), OUTPUT)
    return found


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_one_line(trial, content, tmp_path):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "pointer.json").write_bytes(text)
    with pytest.raises(TerraFMError) as found:
        trial.load_checkpoint(str(tmp_path))
    said = str(found.value)
    assert "pointer.json" in said
    assert "--resume" in said
    assert "\n" not in said


def test_none_is_one_line(trial, tmp_path):
    with pytest.raises(TerraFMError, match=r"pointer\.json is missing"):
        trial.load_checkpoint(str(tmp_path))


def test_what_a_trial_writes_it_reads(trial, tmp_path):
    for newest, kept in ((SOUND | {"knn": 0.5}, SOUND), ({}, None)):
        trial._newest = newest
        trial.save_checkpoint(str(tmp_path))
        trial.load_checkpoint(str(tmp_path))
        assert trial._pointer == kept
    assert read_pointer(str(tmp_path / "pointer.json"), OUTPUT)["run"] is None

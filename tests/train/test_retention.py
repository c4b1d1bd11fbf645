"""Which checkpoints stay: a pure rule, and what it does to a run that saves and prunes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terrafm.config import load_config
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import TrainingState, list_checkpoints, save_checkpoint
from terrafm.train.step.engine import EngineState

RULES = st.builds(Retention, last=st.integers(1, 5), every=st.none() | st.integers(1, 9))
HISTORY = st.sets(st.integers(1, 60), max_size=20)


@given(RULES, HISTORY)
def test_a_checkpoint_stays_exactly_where_a_rule_keeps_it(rules, history):
    kept = rules.reasons(history)
    assert list(kept) == sorted(kept)
    steps = sorted(history)
    expected = {step: [] for step in steps}
    for step in steps[len(steps) - min(rules.last, len(steps)) :]:
        expected[step].append("last")
    for step in steps:
        if rules.every and step % rules.every == 0:
            expected[step].append(f"every {rules.every}")
    assert kept == {step: why for step, why in expected.items() if why}


@given(RULES, HISTORY)
def test_pruning_at_every_checkpoint_keeps_what_pruning_at_the_end_would(rules, history):
    there = set()
    for step in sorted(history):
        there = set(rules.reasons(there | {step}))
        assert step in there
    assert there == set(rules.reasons(history))


def saved(folder, step):
    tensors = {"weight": torch.zeros(2)}
    engine = EngineState(tensors, tensors)
    save_checkpoint(folder, TrainingState(step, engine, tensors, tensors))


@pytest.mark.parametrize("place", ["disk", "store"])
def test_pruning_removes_the_others_and_leaves_what_lies_past_the_run(place, tmp_path, s3_bucket):
    root = str(tmp_path) if place == "disk" else s3_bucket
    folder = f"{root}/checkpoints"
    for step in (1, 2, 3, 4, 9):
        saved(folder, step)
    # The run went on from before step 9, which was damaged, and is at 4.
    prune_checkpoints(folder, Retention(last=1, every=2), 4)
    assert [step for step, _ in list_checkpoints(folder)] == [2, 4, 9]


def test_the_rules_come_from_the_configuration():
    assert Retention.of(load_config(None).train) == Retention(last=3)
    settings = ["keep_checkpoints=2", "keep_every=10"]
    train = load_config(None, [f"train.{setting}" for setting in settings]).train
    assert Retention.of(train) == Retention(2, 10)

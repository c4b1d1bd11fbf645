"""What is known of validations: the lines, the best, which is next, and what must stay."""

import json
import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from terrafm.config import load_config
from terrafm.errors import TerraFMError, UsageError
from terrafm.train.checkpoints.best import (
    Best,
    choose_best,
    find_checkpoint,
    held_reasons,
    read_best,
)
from terrafm.train.checkpoints.inventory import list_run, render_list
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import TrainingState, list_checkpoints, save_checkpoint
from terrafm.train.checkpoints.validations import ValidationLog, read_validations
from terrafm.train.step.engine import EngineState

CONFIG = load_config(
    None, ["train.checkpoint_every=10", "validation.every_steps=20", "validation.metric=knn"]
).validation


def save(run, *steps):
    tensors = {"weight": torch.zeros(2)}
    state = EngineState(tensors, tensors)
    for step in steps:
        save_checkpoint(f"{run}/checkpoints", TrainingState(step, state, tensors, tensors))


def there(run):
    return [step for step, _ in list_checkpoints(f"{run}/checkpoints")]


# Of the others the smallest value is the best.
METRICS = ["knn", "retrieval/s1-to-s2_l2a/median_rank", "uniformity/s1", "alignment/s1-s2_l2a"]


def score(value):
    return {"metrics": {"knn": value}, "seconds": 1.0}


@given(
    st.lists(st.tuples(st.integers(1, 99), st.dictionaries(
        st.sampled_from(METRICS), st.floats() | st.integers(-3, 3) | st.none()
    )), max_size=12, unique_by=lambda pair: pair[0]),
    st.sampled_from(METRICS),
)  # fmt: skip
def test_the_best_is_the_first_of_the_best_values(scores, metric):
    found = choose_best(scores, metric)
    mode = "max" if metric == "knn" else "min"
    values = {s: m[metric] for s, m in scores if m.get(metric) is not None}
    values = {step: value for step, value in values.items() if math.isfinite(value)}
    if not values:
        assert found is None
        return
    extreme = (max if mode == "max" else min)(values.values())
    first = min(step for step, value in values.items() if value == extreme)
    assert found == Best(first, metric, mode, extreme)


@pytest.mark.parametrize("place", ["disk", "store"])
def test_the_newest_is_next_and_those_that_were_passed_over_stay_so(place, tmp_path, s3_bucket):
    run = str(tmp_path) if place == "disk" else s3_bucket
    log = ValidationLog(run, CONFIG, total_steps=70)
    assert log.due() is None
    save(run, 10)
    assert log.due() is None
    save(run, 20, 30, 40, 50)
    assert log.due()[0] == 40
    log.add(40, score(0.5))
    assert log.due() is None
    # The last checkpoint is validated, whatever its step.
    save(run, 60, 70)
    assert log.due()[0] == 70
    log.add(70, score(0.4))
    assert log.due() is None
    assert [(line["step"], line["checkpoint"]) for line in read_validations(run)] == [
        (40, "checkpoints/step_00000040"),
        (70, "checkpoints/step_00000070"),
    ]
    assert read_best(f"{run}/checkpoints") == Best(40, "knn", "max", 0.5)


def test_a_run_that_goes_on_from_before_has_each_step_once(tmp_path):
    save(tmp_path, 20, 40, 60)
    log = ValidationLog(str(tmp_path), CONFIG, total_steps=80)
    for step, value in ((20, 0.3), (40, 0.6), (60, 0.9)):
        log.add(step, score(value))
    log.add(60, score(0.9))
    assert [line["step"] for line in read_validations(str(tmp_path))] == [20, 40, 60]
    again = ValidationLog(str(tmp_path), CONFIG, total_steps=80)
    again.go_back(40)
    assert [line["step"] for line in read_validations(str(tmp_path))] == [20, 40]
    assert read_best(str(tmp_path / "checkpoints")).step == 40
    assert again.due()[0] == 60


def test_another_metric_names_another_best_when_the_run_goes_on(tmp_path):
    save(tmp_path, 20, 40)
    log = ValidationLog(str(tmp_path), CONFIG, total_steps=40)
    log.add(20, {"metrics": {"knn": 0.9, "rank": 3.0}})
    log.add(40, {"metrics": {"knn": 0.1, "rank": 9.0}})
    changed = CONFIG.model_copy(update={"metric": "rank"})
    ValidationLog(str(tmp_path), changed, total_steps=40).go_back(40)
    document = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert document == {
        "step": 40, "checkpoint": "step_00000040", "metric": "rank", "mode": "max", "value": 9.0,
    }  # fmt: skip


def test_pruning_keeps_the_best_and_what_a_validation_still_needs(tmp_path):
    folder = str(tmp_path / "checkpoints")
    log = ValidationLog(str(tmp_path), CONFIG, total_steps=100)
    save(tmp_path, 20)
    log.add(20, score(0.7))
    save(tmp_path, 40, 60, 80)
    log.hold([40])
    prune_checkpoints(folder, Retention(last=1), 80)
    assert there(tmp_path) == [20, 40, 80]
    assert held_reasons(folder) == {20: "best knn", 40: "validation"}
    log.add(40, score(0.8))
    log.hold([])
    prune_checkpoints(folder, Retention(last=1), 80)
    assert there(tmp_path) == [40, 80]


def shown(renderable):
    console = Console(width=120, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_list_marks_the_best(tmp_path):
    save(tmp_path, 20, 40)
    log = ValidationLog(str(tmp_path), CONFIG, total_steps=40)
    log.add(20, score(0.7))
    log.add(40, score(0.6))
    found = list_run(str(tmp_path))
    assert found["validated"] == "knn"
    assert [row["validation"] for row in found["checkpoints"]] == [0.7, 0.6]
    assert found["checkpoints"][0]["kept"] == ["best knn"]
    assert "0.7000" in shown(render_list(found))


def test_best_stands_for_a_checkpoint(tmp_path):
    save(tmp_path, 20)
    uri = str(tmp_path / "checkpoints" / "best")
    with pytest.raises(UsageError, match=r"checkpoints/best: there is no best.json"):
        find_checkpoint(uri)
    ValidationLog(str(tmp_path), CONFIG, total_steps=40).add(20, score(0.7))
    assert find_checkpoint(uri) == str(tmp_path / "checkpoints" / "step_00000020")
    for other in (str(tmp_path / "checkpoints" / "step_00000020"), "s3://bucket/average"):
        assert find_checkpoint(other) == other


def test_files_that_are_not_readable_are_named(tmp_path):
    folder = Path(tmp_path) / "checkpoints"
    folder.mkdir()
    (folder / "best.json").write_text("{")
    with pytest.raises(TerraFMError, match=r"best\.json is not readable: .*remove it"):
        read_best(str(folder))
    (tmp_path / "validation.jsonl").write_text('{"step": 1')
    with pytest.raises(TerraFMError, match=r"validation\.jsonl is not readable"):
        read_validations(str(tmp_path))

"""A run that validates: its lines, its best checkpoint, and what a user does with that."""

import json
import sys

import pytest
import ray
from ray import cloudpickle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import terrafm
from terrafm.config import load_config
from terrafm.eval.validation import CheckpointValidation
from terrafm.models.weights import read_contract
from terrafm.pictures.learned import pictures_of_checkpoint
from terrafm.train.checkpoints.validations import read_validations
from terrafm.train.driver.events import read_events
from terrafm.train.driver.pretrain import describe, pretrain

SETTINGS = [
    "train.global_batch=4",
    "train.micro_batch=2",
    "head.num_prototypes=32",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=1",
    "data.local_crops=1",
    "validation.every_steps=2",
    "validation.samples=9",
    "validation.metric=uniformity/fused",
]


class Worsening(CheckpointValidation):
    """The real one, whose deciding metric, of which less is better, grows with every checkpoint."""

    def score(self, checkpoint):
        """As it is, but for one value."""
        score = super().score(checkpoint)
        score["metrics"]["uniformity/fused"] = float(checkpoint.rpartition("_")[2])
        return score


@pytest.fixture(autouse=True)
def own_ray():
    ray.shutdown()
    # The workers cannot import a module of the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


def train(data, output, steps, extend=False):
    config = load_config("demo", [*SETTINGS, f"train.steps={steps}"])
    return pretrain(config, data, str(output), validate=Worsening, extend=extend)


@pytest.mark.slow
def test_a_run_names_its_best_checkpoint_and_keeps_it(run, small_dataset, tmp_path):
    output = tmp_path / "run"
    assert train(small_dataset, output, 2).best.step == 2
    second = train(small_dataset, output, 4, extend=True)
    assert [line["step"] for line in read_validations(str(output))] == [2, 4]
    assert (second.steps, second.resumed_from, second.best.step) == (4, 2, 2)
    # With train.keep_checkpoints=1 only the last would be left.
    folder = output / "checkpoints"
    names = ["best.json", "step_00000002", "step_00000004"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert describe(second).splitlines()[1] == (
        f"best checkpoint {folder}/step_00000002: uniformity/fused 2"
    )
    weights = [f"{output}/exported/{name}.safetensors" for name in ("last", "best")]
    assert describe(second).splitlines()[2:] == [f"weights {uri}" for uri in weights]
    assert [read_contract(uri).step for uri in weights] == [4, 2]
    (output / "exported" / "best.safetensors").unlink()
    assert "best checkpoint" in describe(train(small_dataset, output, 4))
    assert read_contract(weights[1]).step == 2
    line = read_validations(str(output))[1]
    assert line["checkpoint"] == "checkpoints/step_00000004"
    assert (line["samples"], line["tail"]) == (9, ["class 40", "class 50"])
    assert 0 <= line["per_class"]["fused"]["class 10"]["knn20"] <= 1
    told = [event for event in read_events(str(output)) if event["event"] == "validated"]
    assert [(event["step"], event["best"]) for event in told] == [(2, True), (4, False)]
    board = EventAccumulator(str(output / "tensorboard" / "validation"))
    board.Reload()
    assert board.Scalars("validation/uniformity/fused")[-1].value == 4

    code, out, _ = run("checkpoint", "list", output, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["validated"] == "uniformity/fused"
    assert [row["validation"] for row in found["checkpoints"]] == [2, 4]
    assert found["checkpoints"][0]["kept"] == ["best uniformity/fused"]
    where = ("--output", tmp_path / "w", "--format", "safetensors")
    code, _, errors = run("export", "--checkpoint", folder / "best", *where)
    assert code == 0, errors
    assert terrafm.load_model("terrafm_tiny", tmp_path / "w").contract is not None


@pytest.mark.slow
def test_a_run_that_was_interrupted_before_its_last_validation_makes_it_up(small_dataset, tmp_path):
    output = tmp_path / "run"
    first = train(small_dataset, output, 2)
    (line,) = read_validations(str(output))
    (output / "validation.jsonl").unlink()
    (output / "checkpoints" / "best.json").unlink()
    again = train(small_dataset, output, 2)
    assert (again.resumed_from, again.best) == (2, first.best)
    (made_up,) = read_validations(str(output))
    assert made_up["metrics"] == line["metrics"]


@pytest.mark.slow
def test_a_run_without_labels_names_its_best_checkpoint_by_retrieval(make_dataset, tmp_path):
    data, output = make_dataset(tmp_path / "data", classes=(0,) * 11), tmp_path / "run"
    metric = "retrieval/s1-to-s2_l2a/median_rank"
    settings = [*SETTINGS, "train.steps=4", "validation.scores=[retrieval]"]
    config = load_config("demo", [*settings, f"validation.metric={metric}"])

    def validate(task):
        return CheckpointValidation(task, pictures_of_checkpoint)

    result = pretrain(config, data, str(output), validate=validate)
    lines = read_validations(str(output))
    assert lines[-1]["step"] == 4
    values = {line["step"]: line["metrics"][metric] for line in lines}
    best = min(values, key=lambda step: (values[step], step))
    assert (result.best.metric, result.best.step, result.best.value) == (metric, best, values[best])
    kept = json.loads((output / "checkpoints" / "best.json").read_text())
    assert (kept["step"], kept["metric"]) == (best, metric)
    assert (output / "checkpoints" / f"step_{best:08d}").exists()
    # Whole places are drawn: nine of the eleven, each with one tile.
    assert (lines[-1]["samples"], lines[-1]["retrieval"]["data"]) == (9, data)
    board = EventAccumulator(str(output / "tensorboard" / "validation"))
    board.Reload()
    assert board.Scalars(f"validation/{metric}")[-1].value == values[4]
    seen = EventAccumulator(str(output / "tensorboard" / "pictures"))
    seen.Reload()
    steps = [line["step"] for line in lines]
    (tile,) = [tag for tag in seen.Tags()["images"] if tag.startswith("tiles/")]
    for tag in (tile, "crops/the_crops_of_one_sample"):
        assert [image.step for image in seen.Images(tag)] == steps
    assert seen.Images(tile)[0].width > 3 * 150

"""Fine-tuning: whose rate is what, which epoch stays, who learns from whom, that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid
from terrafm.eval.finetune import training
from terrafm.eval.finetune.classes import finetune_classes
from terrafm.eval.finetune.models import Classifier, Segmenter
from terrafm.eval.finetune.pixels import SYMMETRIES, turned
from terrafm.eval.finetune.training import fine_tune, layer_groups
from terrafm.eval.probes.protocols import Task
from terrafm.eval.probes.shuffling import shuffled
from terrafm.eval.segmentation import upernet
from terrafm.eval.tables.common import CompareOptions, render, table_rows
from terrafm.eval.tables.segmentation import compare_masks
from terrafm.models.encoder import build_encoder
from terrafm.train.step.optimizer import group_of


def beit_layer(name, depth):
    """As in BEiT's and MAE's optimizers, with the names of this encoder."""
    if name.startswith(("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed")):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


@pytest.mark.parametrize("kind", [Classifier, Segmenter])
def test_rates_and_decay_are_those_of_beit_and_of_pretraining(kind, monkeypatch):
    monkeypatch.setattr(upernet, "WIDTH", 4)
    model = kind(build_encoder("terrafm_tiny"), 3)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layer_groups(model)
    seen = {names[p]: group for group in groups for p in group["params"]}
    assert set(seen) == set(names.values())
    for name, group in seen.items():
        assert group["lr_scale"] == pytest.approx(0.75 ** (4 - beit_layer(name, 3))), name
    # timm counts what has one dimension as what is not decayed; pretraining goes by the name.
    for name, parameter in model.encoder.named_parameters():
        bare = group_of(name) == "no_decay" or parameter.ndim == 1
        assert (seen[f"encoder.{name}"]["weight_decay"] == 0) == bare, name
    head = "head.weight" if kind is Classifier else "head.classify.weight"
    assert seen[head]["weight_decay"] == pytest.approx(0.05)


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def group_matcher(self, coarse=False):
        return {"all": ".*"}


class Scripted:
    """A model of one number whose gradient is always 1, and a script of validation scores.

    AdamW then moves by exactly the learning rate.
    """

    def __init__(self, *scores):
        self.scores = scores
        self.paths = []

    def build(self):
        self.paths.append([])
        self.left = iter(self.scores[len(self.paths) - 1])
        return Number()

    def loss(self, model, rows, symmetries):
        assert len(symmetries) == len(rows)
        self.paths[-1].append(model.value.item())
        return model.value.sum()

    def validate(self, model, rows):
        assert not model.training
        self.last = model.value.item()
        return next(self.left)


def test_the_rate_warms_up_and_falls_as_a_cosine(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATES", (1e-2,))
    objective = Scripted([(epoch, 0) for epoch in range(10)])
    fine_tune(objective, np.arange(64), np.arange(3), epochs=10, seed=0)
    rates = -np.diff([*objective.paths[0], objective.last])
    steps = 20  # two batches an epoch
    expected = [1e-2 * (step + 1) / 2 for step in range(2)]
    expected += [1e-2 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(2, steps)]
    # The warm-up's end stands before the cosine's own value there.
    np.testing.assert_allclose(rates[2:], expected[2:], rtol=1e-5)
    assert 0 < rates[0] < 1e-2
    assert rates.max() <= 1e-2


def test_the_best_epoch_of_the_best_rate_stays(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATES", (1e-3, 1e-2))
    objective = Scripted(
        [(0.5, 0), (0.4, 0), (0.3, 0)],
        [(0.2, 0), (0.6, -2), (0.6, -1)],
    )
    tuned = fine_tune(objective, np.arange(32), np.arange(3), epochs=3, seed=0)
    assert (tuned.learning_rate, tuned.epoch, tuned.score) == (1e-2, 3, (0.6, -1))
    objective = Scripted([(0.5, 0), (0.7, 0), (0.3, 0)], [(0.2, 0), (0.6, -2), (0.6, -1)])
    tuned = fine_tune(objective, np.arange(32), np.arange(3), epochs=3, seed=0)
    assert (tuned.learning_rate, tuned.epoch) == (1e-3, 2)
    assert tuned.model.value.item() == objective.paths[0][2]


def test_a_training_that_no_longer_gets_better_ends(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATES", (1e-3,))
    objective = Scripted([(1.0, 0)] + [(0.5, 0)] * 99)
    tuned = fine_tune(objective, np.arange(8), np.arange(3), epochs=100, seed=0)
    assert tuned.epoch == 1
    assert len(objective.paths[0]) == 1 + training.PATIENCE


def test_a_loss_that_is_not_finite_ends_a_training_not_all(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATES", (1e-3, 1e-2))

    class Exploding(Scripted):
        def loss(self, model, rows, symmetries):
            loss = super().loss(model, rows, symmetries)
            return loss * float("nan") if len(self.paths) in self.exploding else loss

    objective = Exploding([], [(0.5, 0)])
    objective.exploding = (1,)
    tuned = fine_tune(objective, np.arange(8), np.arange(3), epochs=1, seed=0)
    assert tuned.learning_rate == 1e-2
    objective = Exploding([], [])
    objective.exploding = (1, 2)
    with pytest.raises(UsageError, match="the loss is not finite"):
        fine_tune(objective, np.arange(8), np.arange(3), epochs=1, seed=0)


def test_no_batch_has_one_image_unless_there_is_but_one():
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 5, 8, 9):
        batches = list(shuffled(np.arange(count), 4, generator))
        assert sorted(np.concatenate(batches)) == list(range(count))
        assert count == 1 or min(map(len, batches)) > 1


def test_the_symmetries_are_the_eight_of_a_square():
    image = torch.arange(9).reshape(1, 3, 3)
    found = {tuple(turned(image, s).flatten().tolist()) for s in range(SYMMETRIES)}
    assert len(found) == SYMMETRIES
    np.testing.assert_array_equal(turned(image, 1)[0], np.rot90(image[0]))
    np.testing.assert_array_equal(turned(image, 4)[0], np.fliplr(image[0]))
    np.testing.assert_array_equal(turned(image, 7)[0], np.rot90(np.fliplr(image[0]), 3))


class Levels:
    """Images whose class is their brightness; one class nobody has."""

    uri = "levels"
    modalities = ("s2_l2a",)
    bands = {"s2_l2a": "made here"}  # noqa: RUF012
    fingerprint = "levels"
    classes = ("wet", "dry", "nobody")

    def __init__(self, count=96, several=False):
        generator = np.random.default_rng(0)
        kinds = np.arange(count) % 2
        self.labels = np.stack([kinds, 1 - kinds, 0 * kinds], 1) if several else kinds
        self.names = [f"image {i}" for i in range(count)]
        self.groups = np.arange(count)
        self.splits = generator.permutation(
            np.array((["train"] * 4 + ["valid", "test"]) * (count // 6))
        )
        level = np.where(kinds, 0.18, 0.1)[:, None, None, None]
        self.pixels = level + 0.02 * generator.normal(size=(count, 12, 32, 32))

    def read(self, row, modalities):
        return {"s2_l2a": [Grid(tuple(range(12)), self.pixels[row].astype(np.float32))]}

    def statistics(self):
        return {"s2_l2a": {"mean": [0.14] * 12, "std": [0.05] * 12}}

    def task(self, **changed):
        return replace(Task(self.labels, 3, self.groups, self.splits), **changed)


OPTIONS = CompareOptions(size=32)


def tune(images, weights, task=None, epochs=3):
    inputs = OPTIONS.inputs(images)
    _, untrained, _ = table_rows(images, inputs, [weights], (), [], (0,))
    before = {name: value.clone() for name, value in untrained.encoder.state_dict().items()}
    rows = np.arange(len(images.names))
    outcome = finetune_classes(untrained, images, rows, task or images.task(), inputs, epochs)
    for name, value in untrained.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    return outcome


@pytest.fixture
def one_rate(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATES", (1e-3,))


def test_an_encoder_learns_classes(weights, one_rate):
    """Chance is one half."""
    images = Levels()
    outcome = tune(images, weights)
    assert outcome.rows.tolist() == np.flatnonzero(images.splits == "test").tolist()
    assert (outcome.predictions == images.labels[outcome.rows]).mean() > 0.9
    assert outcome.details["learning_rate"] == [1e-3]
    assert outcome.details["epochs"] == 3
    # Who is tested teaches nothing, and the seed decides the rest.
    changed = np.where(images.splits == "test", 1 - images.labels, images.labels)
    again = tune(images, weights, images.task(labels=changed))
    assert again.predictions.tolist() == outcome.predictions.tolist()
    assert again.details == outcome.details


def test_an_encoder_learns_several_labels_of_which_one_is_absent(weights, one_rate):
    images = Levels(several=True)
    outcome = tune(images, weights)
    assert outcome.predictions.shape == (16, 3)
    truth = images.labels[outcome.rows]
    assert ((outcome.predictions > 0.5) == truth)[:, :2].mean() > 0.9
    assert (outcome.predictions[:, 2] < 0.5).all()


def test_no_image_of_validation_has_any_label(weights, one_rate):
    images = Levels(count=24, several=True)
    images.labels[images.splits == "valid"] = 0
    outcome = tune(images, weights, epochs=1)
    assert np.isfinite(outcome.predictions).all()


def test_without_splits_every_image_is_predicted_by_what_did_not_see_it(
    weights, one_rate, monkeypatch
):
    parts = []

    class Recorded:
        """A training whose model knows what it was trained on, and predicts that."""

        def __init__(self, objective, train, valid, **_):
            parts.append((set(train.tolist()), set(valid.tolist())))
            self.model, self.learning_rate, self.epoch = len(parts) - 1, 1e-3, 1

    monkeypatch.setattr("terrafm.eval.finetune.classes.fine_tune", Recorded)
    monkeypatch.setattr(
        "terrafm.eval.finetune.classes._Classes.predict",
        lambda _, model, rows: np.full(len(rows), model),
    )
    images = Levels(count=30)
    places = np.arange(30) // 2
    outcome = tune(images, weights, images.task(splits=None, groups=places))
    assert outcome.rows.tolist() == list(range(30))
    for place, model in zip(places, outcome.predictions, strict=True):
        train, valid = parts[model]
        assert not {2 * place, 2 * place + 1} & (train | valid)
        assert not train & valid
    assert outcome.details["epoch"] == [1] * 5


def test_images_may_lack_one_of_several_modalities(weights, one_rate):
    images = Levels(count=24)
    images.modalities = ("s1", "s2_l2a")
    plain = images.read

    def read(row, modalities):
        image = {"s1": [Grid((0, 1), images.pixels[row, :2].astype(np.float32))]}
        return image | (plain(row, modalities) if row % 3 else {})

    images.read = read
    images.statistics = lambda: {
        "s1": {"mean": [0.14] * 2, "std": [0.05] * 2}, **Levels.statistics(images)
    }  # fmt: skip
    inputs = replace(OPTIONS, modalities=("s1", "s2_l2a")).inputs(images)
    _, row, _ = table_rows(images, inputs, [weights], (), [], (0,))
    outcome = finetune_classes(row, images, np.arange(24), images.task(), inputs, 1)
    assert set(outcome.predictions) <= {0, 1, 2}


def test_the_whole_encoder_is_trained(monkeypatch):
    monkeypatch.setattr(upernet, "WIDTH", 4)
    torch.manual_seed(0)
    pixels = {"s2_l2a": torch.randn(3, 12, 64, 64)}
    for model, given in (
        (Classifier(build_encoder("terrafm_tiny"), 3), {"s2_l2a": torch.arange(3)}),
        (Segmenter(build_encoder("terrafm_tiny"), 3), (64, 64)),
    ):
        model(pixels, given).square().sum().backward()
        for name, parameter in model.named_parameters():
            # Other sensors' embeddings and fusion have no part in one sensor.
            elsewhere = any(part in name for part in ("s1", "s2_l1c", "fusion"))
            assert elsewhere or parameter.grad.abs().sum() > 0, name


def test_the_command_fine_tunes_encoders_only(tmp_path, weights, write_image, run, one_rate):
    images = Levels(count=12)
    for i, kind in enumerate(images.labels):
        pixels = np.clip(images.pixels[i] * 1e4, 1, None).astype(np.uint16)
        thirteen = np.concatenate([pixels, pixels[:1]])
        write_image(tmp_path / "images" / f"class {kind}" / f"{i}.tif", thirteen)
    code, printed, errors = run(
        "evaluate", "compare", "--data", tmp_path / "images", "--weights", weights,
        "--protocol", "finetune", "--epochs", 1, "--size", 32, "--resamples", 20,
    )  # fmt: skip
    assert code == 0, errors
    words = " ".join(printed.split())
    assert "fine-tuned: learning rate 0.001, 0.001, 0.001, 0.001, 0.001" in words
    assert "best after epoch 1, 1, 1, 1, 1 of 1 epochs" in words
    assert "only TerraFM's encoders are fine-tuned, not: mean spectrum" in words
    assert "cross-validated in 5 folds" in words


def test_without_an_encoder_there_is_nothing_to_fine_tune(small_dataset, refused):
    line = refused("evaluate", "compare", "--data", small_dataset, "--protocol", "finetune")
    assert "--weights" in line


@pytest.mark.slow
def test_an_encoder_learns_masks(fields, weights, one_rate, monkeypatch):
    """Chance is an mIoU of about 1/3."""
    monkeypatch.setattr(upernet, "WIDTH", 16)
    told = []
    options = CompareOptions(size=64, resamples=20, protocols=["finetune"], epochs=30)
    result = compare_masks(fields(noise=0.02), [weights], (), options, told.append)
    assert result["rows"][0]["title"].startswith("untrained")
    for row in result["rows"]:
        scored = row["protocols"]["finetune"]
        assert scored["scores"]["miou"]["value"] > 0.8
        assert 1 <= scored["epoch"] <= scored["epochs"] == 30
    assert "fine-tuned: learning rate 0.001, best after epoch" in render(result).caption
    assert any("fine-tuning, learning rate 0.001, epoch 2 of 30" in text for text in told)


def test_masks_that_are_no_squares_are_turned_by_half_turns_only(fields, weights, one_rate):
    images = fields(count=5)
    full = images.mask
    images.mask = lambda row: full(row)[:, ::2]
    options = CompareOptions(size=32, resamples=5, protocols=["finetune"], epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upernet, "WIDTH", 4)
        result = compare_masks(images, [weights], (), options)
    assert 0 <= result["rows"][0]["protocols"]["finetune"]["scores"]["miou"]["value"] <= 1


def test_an_image_of_masks_that_lacks_a_modality_is_named(fields, weights, one_rate):
    images = fields(count=5)
    whole = images.read
    images.read = lambda row, modalities: {} if row == 1 else whole(row, modalities)
    options = CompareOptions(size=32, resamples=5, protocols=["finetune"], epochs=1)
    with pytest.raises(UsageError, match="image field 1 lacks a modality of the others"):
        compare_masks(images, [weights], (), options)

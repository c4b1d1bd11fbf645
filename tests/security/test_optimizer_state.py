"""A checkpoint's optimizer, as strangers or mistakes leave it: one line, or a run that goes on."""

from dataclasses import replace

import pytest
import torch

from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.train.checkpoints.store import load_checkpoint, save_checkpoint
from terrafm.train.step.engine import EngineState, PlainEngine
from terrafm.train.worker.setup import TrainingSetup


@pytest.fixture(scope="module")
def setup(small_dataset):
    settings = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32"]
    return TrainingSetup.open(load_config("demo", settings), small_dataset)


@pytest.fixture
def go_on(setup, checkpoint, tmp_path):
    """Goes on from a checkpoint whose optimizer was changed, with right checksums, for a step."""

    def command(change):
        state = load_checkpoint(checkpoint)
        optimizer = dict(state.engine.optimizer)
        names = [name for name in optimizer if name.startswith("exp_avg.")]
        change(optimizer, names[0])
        state = replace(state, engine=EngineState(state.engine.student, optimizer))
        uri = save_checkpoint(str(tmp_path / "run" / "checkpoints"), state)
        device = torch.device("cpu")

        def engine(student):
            return PlainEngine(student, setup.config.optim, precision="float32", device=device)

        distillation = setup.distillation(engine, load_checkpoint(uri), device)
        for parameter in distillation.engine.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        distillation.engine.step(setup.schedules.at(2))
        return names[0]

    return command


def other_form(optimizer, name):
    # Files give tensors in any order, and some have a first dimension of 1 already.
    optimizer[name] = optimizer[name].unsqueeze(0)


def longer(optimizer, name):
    optimizer[name] = torch.zeros(optimizer[name].numel() + 1)


def scalar(optimizer, name):
    optimizer[name] = torch.tensor(1.0)


def whole_numbers(optimizer, name):
    optimizer[name] = torch.zeros(optimizer[name].shape, dtype=torch.int64)


CHANGES = {
    "missing": (lambda o, n: o.pop(n), "it is missing"),
    "empty": (lambda o, n: o.clear(), "it is missing"),
    "another form": (other_form, "found float32 of 1 x"),
    "longer": (longer, "found float32 of"),
    "one number": (scalar, "found one float32"),
    "whole numbers": (whole_numbers, "found int64 of"),
    "no count": (lambda o, n: o.pop("step.decay"), "step.decay has to be one float32"),
    "two counts": (lambda o, n: o.update({"step.decay": torch.zeros(2)}), "found float32 of 2"),
    "no number": (lambda o, n: o.update({"step.decay": torch.tensor(float("nan"))}), "found nan"),
    "negative": (lambda o, n: o.update({"step.no_decay": torch.tensor(-1.0)}), "found -1"),
    "infinite": (lambda o, n: o.update({"step.decay": torch.tensor(float("inf"))}), "found inf"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_an_optimizer_of_another_model_is_one_line(go_on, change, said):
    with pytest.raises(UsageError) as found:
        go_on(change)
    text = str(found.value)
    assert said in text
    assert "\n" not in text
    assert "step_00000002/optimizer.safetensors is" in text


def test_a_sound_one_goes_on(go_on):
    assert go_on(lambda optimizer, name: optimizer.update({"more": torch.zeros(1)}))

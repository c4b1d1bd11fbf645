"""Frozen parts: which they are, that nothing moves them, what is refused."""

import itertools

import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.errors import UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_released, save_safetensors
from terrafm.train.checkpoints.store import load_checkpoint, save_checkpoint
from terrafm.train.driver.pretrain import dry_run
from terrafm.train.step.engine import PlainEngine
from terrafm.train.step.frozen import freeze
from terrafm.train.worker.setup import TrainingSetup

SETTINGS = [
    "train.steps=4",
    "train.global_batch=4",
    "train.micro_batch=4",
    "head.num_prototypes=32",
    "data.global_size=32",
    "data.local_size=16",
    "data.local_crops=1",
    "optim.base_lr=0.1",
    "optim.teacher_momentum=0.5",
]
SENSORS = {"s1": 2, "s2_l1c": 12, "s2_l2a": 12}


def contract_of(sensors):
    statistics = {m: {"mean": [0.1] * SENSORS[m], "std": [0.3] * SENSORS[m]} for m in sensors}
    return WeightsContract.build("terrafm_tiny", statistics)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(7)
    return build_encoder("terrafm_tiny")


@pytest.fixture(scope="module")
def weights(encoder, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("weights") / "a.safetensors")
    save_safetensors(uri, encoder.state_dict(), contract_of(SENSORS))
    return uri


def frozen_names(parts):
    encoder = build_encoder("terrafm_tiny")
    freeze(encoder, parts)
    return {name for name, p in encoder.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("parts", "starts", "but"),
    [
        ((), (), ()),
        (("patch_embed",), ("patch_embed.",), ("patch_embed.fusion.",)),
        (("fusion",), ("patch_embed.fusion.",), ()),
        (("pos_embed", "cls_token"), ("pos_embed", "cls_token"), ()),
        (("blocks:2",), ("blocks.0.", "blocks.1."), ()),
        (("blocks",), ("blocks.",), ()),
        (("blocks:1", "fusion"), ("blocks.0.", "patch_embed.fusion."), ()),
    ],
)
def test_the_parts_have_the_names_that_they_say(parts, starts, but):
    names = [name for name, _ in build_encoder("terrafm_tiny").named_parameters()]
    expected = {
        name
        for name in names
        if any(name.startswith(s) for s in starts) and not any(name.startswith(b) for b in but)
    }
    assert bool(expected) == bool(parts)
    assert frozen_names(parts) == expected


def open_setup(dataset, weights, *overrides):
    settings = [*SETTINGS, f"model.init={weights}", *overrides]
    return TrainingSetup.open(load_config("demo", settings), dataset)


def train(setup, step, number):
    layout, settings = setup.layout(0, 1), setup.schedules.at(number)
    stream = make_batches(**setup.stream_options(layout, number))
    statistics = step.forward_backward(list(itertools.islice(stream, layout.n_micro)), settings)
    assert step.finish(settings)[0]
    return statistics.means()


FROZEN = "model.frozen=[patch_embed, pos_embed, cls_token, blocks:2]"


@pytest.mark.parametrize("options", [[], ["train.activation_checkpointing=blocks"]])
def test_what_is_frozen_stays_in_student_and_teacher_and_a_run_goes_on(
    small_dataset, weights, encoder, tmp_path, options
):
    setup = open_setup(small_dataset, weights, FROZEN, "optim.layer_decay=[0.9, 0.5]", *options)
    straight = setup.plain_distillation()
    for number in range(2):
        train(setup, straight, number)
    uri = save_checkpoint(str(tmp_path), setup.state(2, straight.engine.state(), straight))
    saved = load_checkpoint(uri)
    still = {f"encoder.{name}" for name in frozen_names(setup.config.model.frozen)}
    before = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for network in (saved.engine.student, saved.teacher):
        for name, tensor in before.items():
            assert torch.equal(network[name], tensor) == (name in still), name
    moments = {name.partition(".")[2] for name in saved.engine.optimizer if "exp" in name}
    assert moments == set(saved.engine.student) - still

    def plain_engine(student):
        return PlainEngine(
            student, setup.config.optim, precision="float32", device=torch.device("cpu")
        )

    resumed = setup.distillation(plain_engine, load_checkpoint(uri), torch.device("cpu"))
    assert train(setup, resumed, 2) == train(setup, straight, 2)
    for name, tensor in straight.engine.state().student.items():
        assert torch.equal(resumed.engine.state().student[name], tensor), name
    with pytest.raises(UsageError, match=r"model\.frozen was .*, now \[\]"):
        open_setup(
            small_dataset, weights, "optim.layer_decay=[0.9, 0.5]", *options
        ).check_continues(saved.record, uri)


def test_the_gradients_of_the_rest_are_those_of_a_run_without(small_dataset, weights):
    """Freezing decides what moves, not what is learned from a batch."""
    found = []
    for overrides in ([], ["model.frozen=[blocks:1]"]):
        setup = open_setup(small_dataset, weights, *overrides)
        step = setup.plain_distillation()
        layout = setup.layout(0, 1)
        batches = list(itertools.islice(make_batches(**setup.stream_options(layout, 0)), 1))
        step.forward_backward(batches, setup.schedules.at(0))
        found.append({n: p.grad for n, p in step.engine.student.named_parameters()})
    whole, part = found
    for name, gradient in part.items():
        if name.startswith("encoder.blocks.0."):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, whole[name])


def look(dataset, tmp_path, *overrides):
    config = load_config("demo", [*SETTINGS, *overrides])
    return dry_run(config, dataset, str(tmp_path / "run"), measure=False)


def test_the_estimate_knows_what_is_not_trained(small_dataset, weights, tmp_path):
    whole = look(small_dataset, tmp_path, f"model.init={weights}")
    part = look(small_dataset, tmp_path, f"model.init={weights}", FROZEN)
    names = frozen_names(("patch_embed", "pos_embed", "cls_token", "blocks:2"))
    frozen = sum(build_encoder("terrafm_tiny").get_parameter(name).numel() for name in names)
    assert whole["parameters"] == part["parameters"]
    assert whole["checkpoint_bytes"] - part["checkpoint_bytes"] == 4 * 2 * frozen
    # Gradients, ZeRO's copies and buffer, two moments.
    assert whole["memory_state"] - part["memory_state"] == 4 * 5 * frozen


def test_parts_that_nobody_has_trained_are_refused_before_ray_starts(
    small_dataset, weights, encoder, tmp_path
):
    with pytest.raises(UsageError, match=r"model\.frozen needs weights .*model\.init"):
        look(small_dataset, tmp_path, "model.frozen=[blocks]")
    with pytest.raises(UsageError, match=r"blocks:9: the encoder has 3 blocks"):
        look(small_dataset, tmp_path, f"model.init={weights}", "model.frozen=['blocks:9']")
    released = str(tmp_path / "b.pth")
    save_released(released, encoder.state_dict(), contract_of(SENSORS))
    with pytest.raises(UsageError, match=r"b\.pth has no patch_embed\.fusion.*take fusion out"):
        look(small_dataset, tmp_path, f"model.init={released}", "model.frozen=[fusion]")
    assert look(small_dataset, tmp_path, f"model.init={released}", FROZEN)["steps"] == 4
    other = str(tmp_path / "c.safetensors")
    save_safetensors(other, encoder.state_dict(), contract_of(["s1"]))
    with pytest.raises(UsageError, match=r"not trained on s2_l1c, s2_l2a.*take patch_embed out"):
        look(small_dataset, tmp_path, f"model.init={other}", "model.frozen=[patch_embed]")

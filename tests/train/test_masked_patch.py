"""Masked patches in the real step: what is guessed, what is learned, what is kept."""

import itertools

import pytest
import torch
from objective_ranks import SETTINGS

from terrafm.config import load_config
from terrafm.data.samples.batch import normalise
from terrafm.data.samples.loader import make_batches
from terrafm.errors import UsageError
from terrafm.models.encoder import build_encoder
from terrafm.train.checkpoints.store import load_checkpoint, load_encoder_state, save_checkpoint
from terrafm.train.step.distillation import build_student_and_teacher
from terrafm.train.step.engine import PlainEngine, StepOutcome
from terrafm.train.worker.setup import TrainingSetup

MASKED = [*SETTINGS, "loss.masked_patch_weight=1", "data.global_size=64"]


def open_setup(dataset, *overrides):
    return TrainingSetup.open(load_config("demo", [*MASKED, *overrides]), dataset)


def batches_of(setup, step, count=None):
    layout = setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, step))
    return list(itertools.islice(stream, count or layout.n_micro))


def train(setup, distillation, step):
    settings = setup.schedules.at(step)
    means = distillation.forward_backward(batches_of(setup, step), settings).means()
    assert distillation.finish(settings)[0]
    return means


def test_only_the_network_of_a_run_that_uses_it_has_a_mask_token():
    plain, _ = build_student_and_teacher(load_config("demo", SETTINGS))
    masked, teacher = build_student_and_teacher(load_config("demo", MASKED))
    assert plain.mask_token is None
    assert set(masked.state_dict()) - set(plain.state_dict()) == {"mask_token"}
    assert list(masked.state_dict()) == list(teacher.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(masked.state_dict()[name], tensor), name


def images_of(batch, setup, drawn):
    """Of each global crop, the pixels of the modalities that a network's view of it has drawn."""
    crops = batch.global_crops
    images = [{} for _ in range(crops.size)]
    for m, pixels in crops.pixels.items():
        ready = normalise(pixels, *setup.statistics[m], m)
        for image, on, pixel in zip(crops.image[m].tolist(), drawn[m], ready, strict=True):
            if on:
                images[image][m] = pixel[None].double()
    return images


def patch_logits(network, image, mask=None):
    """(N, K) of one image, with the encoder's own parts in their order."""
    encoder, rows = network.encoder, torch.zeros(1, dtype=torch.int64)
    tokens = encoder.patch_embed(image, dict.fromkeys(image, rows), 1)
    if mask is not None:
        tokens = torch.where(torch.from_numpy(mask)[None, :, None], network.mask_token, tokens)
    side = round(tokens.shape[1] ** 0.5)
    tokens = torch.cat([encoder.cls_token, tokens], 1) + encoder.position_embedding(side, side)
    for block in encoder.blocks:
        tokens = block(tokens)
    head = network.head
    bottleneck = torch.nn.functional.normalize(head.mlp(encoder.norm(tokens)[0, 1:]))
    return bottleneck @ torch.nn.functional.normalize(head.last_layer.weight).T


@torch.no_grad()
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 0, 1, 1)])
def test_the_term_is_that_of_each_crop_alone_in_float64(small_dataset, weights):
    """Teacher and student see the same crop, mostly by different sensors."""
    setup = open_setup(small_dataset, "model.drop_path=0", "train.global_batch=4")
    distillation = setup.plain_distillation()
    student, teacher = distillation.engine.student, distillation.teacher
    student.mask_token.normal_()
    center = distillation.criterion.masked_patch.center.normal_(std=0.1).double()
    (batch,) = batches_of(setup, 0)
    batch.samples.weight = torch.tensor(weights, dtype=torch.float32)
    settings = setup.schedules.at(0)
    with torch.enable_grad():
        found = distillation.forward_backward([batch], settings).means()["masked_patch"]
    student, teacher = student.double(), teacher.double()
    masks = setup.masking.draw(batch.samples.epoch, batch.samples.position, 2, 4)
    seen = images_of(batch, setup, batch.global_crops.teacher)
    shown = images_of(batch, setup, batch.global_crops.student)
    assert sum(set(a) != set(b) for a, b in zip(seen, shown, strict=True)) >= 4
    assert 0 < masks.any(-1).sum() < 8
    total = 0.0
    for crop, sample in zip(*masks.any(-1).nonzero(), strict=True):
        mask, image = masks[crop, sample], crop * 4 + sample
        q = ((patch_logits(teacher, seen[image]) - center) / settings.teacher_temp).softmax(-1)
        p = (patch_logits(student, shown[image], mask) / setup.config.loss.student_temp).softmax(-1)
        losses = [-(q[n] * p[n].log()).sum().item() for n in mask.nonzero()[0]]
        total += weights[sample] * sum(losses) / len(losses) / 2
    assert found == pytest.approx(total / sum(weights), rel=1e-4)


def test_it_is_learned_and_a_checkpoint_goes_on_bit_for_bit(small_dataset, tmp_path):
    setup = open_setup(small_dataset)
    straight = setup.plain_distillation()
    for step in range(2):
        train(setup, straight, step)
    engine, criterion = straight.engine.state(), straight.criterion
    assert engine.student["mask_token"].any()
    assert straight.teacher.mask_token.any()
    assert criterion.masked_patch.center.any()
    assert not torch.equal(criterion.masked_patch.center, criterion.center)

    uri = save_checkpoint(str(tmp_path), setup.state(2, engine, straight))
    config = setup.config

    def plain_engine(student):
        return PlainEngine(student, config.optim, precision="float32", device=torch.device("cpu"))

    resumed = setup.distillation(plain_engine, load_checkpoint(uri), torch.device("cpu"))
    assert train(setup, resumed, 2) == train(setup, straight, 2)
    for name, tensor in straight.engine.state().student.items():
        assert torch.equal(resumed.engine.state().student[name], tensor), name
    assert torch.equal(resumed.criterion.masked_patch.center, criterion.masked_patch.center)

    exported = load_encoder_state(uri, "teacher")
    assert set(exported) == set(build_encoder(config.model.name).state_dict())
    with pytest.raises(UsageError, match=r"loss\.masked_patch_weight was 1\.0, now 0\.0"):
        open_setup(small_dataset, "loss.masked_patch_weight=0").check_continues(
            load_checkpoint(uri).record, uri
        )


def test_a_step_that_is_left_out_leaves_the_center_and_its_sums(small_dataset, monkeypatch):
    setup = open_setup(small_dataset)
    distillation = setup.plain_distillation()
    settings, batches = setup.schedules.at(0), batches_of(setup, 0)
    distillation.forward_backward(batches, settings)
    with monkeypatch.context() as patch:
        patch.setattr(distillation.engine, "step", lambda _: StepOutcome(False, float("nan")))
        assert not distillation.finish(settings)[0]
    center = distillation.criterion.masked_patch.center
    assert not center.any()
    distillation.criterion.masked_patch.update_centers()
    assert not center.any()
